"""The reinforcement-learning engine: tokens, masks and numbers; it knows nothing about search."""
