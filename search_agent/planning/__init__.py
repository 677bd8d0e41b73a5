"""Before a run: what it takes of cards, memory, disk and time, and what would fail, known before anything starts."""
