"""ExSearch's warm-up trajectories, written by a model from gold evidence: ``python -m preprocess.annotate``."""
