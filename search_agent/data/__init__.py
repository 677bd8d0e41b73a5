"""What a run reads: tasks, corpora, and the trajectories that its warm-up learns from."""
