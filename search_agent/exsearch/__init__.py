"""ExSearch's published steps as commands over this project: ``PROCEDURE=... bash cmd/exsearch.sh --its_arguments``."""
