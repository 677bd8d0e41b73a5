"""From a corpus to an index on disk or in memory: ``python -m search_agent.retrieval.index``."""
