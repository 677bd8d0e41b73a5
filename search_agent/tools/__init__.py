"""What the policy can call, beside the search client: each tool is a short file."""
