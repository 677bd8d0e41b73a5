"""One server process, several of them, and what they say and understand."""
