"""What a person types and sees: the command line, help, errors, pictures, episodes in colour, the report of a run."""
