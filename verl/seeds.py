"""Seeds that depend on what is being drawn, never on when or where it is drawn.

A request for (run, step, task, sample, turn) gets the same seed on any worker, in any order and after any resume, which
is what lets a killed run continue to the same result.
"""

from __future__ import annotations

import hashlib

# vLLM hands a request's seed to torch.Generator.manual_seed; below 2**63 it is a valid int64 everywhere.
_SEED_BITS = 63


def derive_seed(*parts: int | str) -> int:
    """Hash the parts, in order and with their types, to an integer in ``[0, 2**63)``.

    ``derive_seed(0, "rollout", 3, "task-7", 1, 0)`` is the seed of run 0, step 3, task "task-7", sample 1, turn 0.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)
