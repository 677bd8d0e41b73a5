"""Published ways to answer without training, each a protocol in a short file; ``bash cmd/eval.sh method=NAME``."""
