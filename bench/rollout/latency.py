"""How long a search takes: drawn from a hash of its query, so that every arm of a bench waits for the same answers."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

SIGMA = 0.5
"""Of the log-normal part: 95 % of its draws lie between 0.37 and 2.7 medians."""
TAIL_SHARE = 0.02
TAIL_S = 5.0


def latency_s(query: str, median_s: float, seed: int = 0) -> float:
    """Log-normal around ``median_s``; two queries of a hundred take ``TAIL_S`` instead."""
    digest = hashlib.blake2b(f"{seed}/{query}".encode(), digest_size=16).digest()
    tail, place = (int.from_bytes(half) / 2**64 for half in (digest[:8], digest[8:]))
    if tail < TAIL_SHARE:
        return TAIL_S
    return median_s * math.exp(SIGMA * NormalDist().inv_cdf(min(max(place, 1e-12), 1 - 1e-12)))
