"""The blocks of a question's own documents that are nearest to it, as RARE ranks them: cosine of the means of an
encoder's last states, over 512 tokens, without a prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Rank = Callable[[str, Sequence[str]], list[int]]
"""Question and blocks to the places of the blocks, nearest first."""


def by_encoder(model: str) -> Rank:
    """Rank by the encoder of this name or folder. Raises UserError if it cannot be loaded."""
    from search_agent.retrieval.backends.encoder import Encoder
    from search_agent.retrieval.config import EncoderConfig

    # The family whose vectors are plain means of length 1, without a prefix: what RARE's program computes.
    encoder = Encoder(EncoderConfig(model, "minilm", max_tokens=512), key="embedder")

    def rank(question: str, blocks: Sequence[str]) -> list[int]:
        scores = encoder.encode_passages(blocks) @ encoder.encode_queries([question])[0]
        return sorted(range(len(blocks)), key=lambda place: -float(scores[place]))

    return rank
