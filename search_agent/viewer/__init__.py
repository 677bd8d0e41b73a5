"""Runs as a page to look at: curves, a table of episodes, each episode with its searches, two runs side by side."""
