"""Everything about search: protocols, the environment, retrieval, rewards, evaluation."""
