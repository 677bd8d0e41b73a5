"""Data of RARE: published sets by the steps of its README, what a teacher writes over them, and a small world."""
