"""Packing: which sequences share a micro-batch, on which rank.

Invariants, whatever the input: every sequence is in exactly one micro-batch; no micro-batch holds more than the cap;
every rank has the same number of micro-batches (an empty one still takes part in collectives). Costs (FLOPs) are
balanced over ranks, and over the micro-batches that run at the same time. Pure and deterministic.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

from verl.errors import UserError

MicroBatch = tuple[int, ...]
"""Indices of sequences, ascending."""
Plan = tuple[tuple[MicroBatch, ...], ...]
"""``plan[rank][step]``: what that rank computes at that step."""


def pack(lengths: Sequence[int], cap: int, ranks: int = 1, costs: Sequence[float] | None = None) -> Plan:
    """Spread sequences over ``ranks`` in micro-batches of at most ``cap`` tokens.

    ``costs`` (same length, any unit; default the lengths) is what is balanced, see ``verl.learner.flops``. Raises
    UserError for a sequence longer than the cap.
    """
    costs = lengths if costs is None else costs
    for index, length in enumerate(lengths):
        if length > cap:
            raise UserError(
                f"sequence {index} has {length} tokens, a micro-batch holds {cap} (learner.max_tokens_per_microbatch x "
                "learner.sequence_ranks): raise one of them or shorten the context"
            )
    fewest = _best_fit_count(lengths, cap)
    count = max(ranks, -(-fewest // ranks) * ranks)
    while (bins := _spread(lengths, costs, cap, count)) is None:
        count += ranks
    return _to_ranks(bins, costs, ranks)


def _best_fit_count(lengths: Sequence[int], cap: int) -> int:
    """How many micro-batches best-fit-decreasing needs: within 11/9 of the optimum."""
    room: list[int] = []  # of each micro-batch, ascending
    for length in sorted(lengths, reverse=True):
        slot = bisect_left(room, length)
        insort(room, (room.pop(slot) if slot < len(room) else cap) - length)
    return len(room)


def _spread(lengths: Sequence[int], costs: Sequence[float], cap: int, count: int) -> list[list[int]] | None:
    """Dearest first, each to the cheapest micro-batch, or to the emptiest if that is full; None if it is full too."""
    order = sorted(range(len(lengths)), key=lambda i: (-costs[i], -lengths[i], i))
    bins: list[list[int]] = [[] for _ in range(count)]
    cost, tokens = [0.0] * count, [0] * count
    # Both heaps keep entries of the past; one is good if it says what its micro-batch holds now.
    cheapest: list[tuple[float, int, int]] = [(0.0, 0, b) for b in range(count)]
    emptiest: list[tuple[int, int]] = [(0, b) for b in range(count)]
    for index in order:
        while cheapest[0][:2] != (cost[cheapest[0][2]], tokens[cheapest[0][2]]):
            heapq.heappop(cheapest)
        slot = cheapest[0][2]
        if tokens[slot] + lengths[index] > cap:
            while emptiest[0][0] != tokens[emptiest[0][1]]:
                heapq.heappop(emptiest)
            slot = emptiest[0][1]
            if tokens[slot] + lengths[index] > cap:
                return None
        bins[slot].append(index)
        cost[slot] += costs[index]
        tokens[slot] += lengths[index]
        heapq.heappush(cheapest, (cost[slot], tokens[slot], slot))
        heapq.heappush(emptiest, (tokens[slot], slot))
    return bins


def _to_ranks(bins: list[list[int]], costs: Sequence[float], ranks: int) -> Plan:
    """Give out micro-batches in rounds of similar cost; in a round the rank with the least so far gets the dearest."""
    totals = [sum(costs[i] for i in members) for members in bins]
    dearest = sorted(range(len(bins)), key=lambda b: (-totals[b], b))
    shares: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for start in range(0, len(dearest), ranks):
        poorest = sorted(range(ranks), key=lambda r: (load[r], r))
        for rank, b in zip(poorest, dearest[start : start + ranks], strict=True):
            shares[rank].append(tuple(sorted(bins[b])))
            load[rank] += totals[b]
    return tuple(tuple(share) for share in shares)
