"""``python -m search_agent.retrieval.server corpus=FILE port=N``."""

from search_agent.retrieval.server.process import main
from verl.config.arguments import run

if __name__ == "__main__":
    run(main)
