"""Packing: which sequences share a micro-batch, on which rank.

Invariants, whatever the input: every sequence is in exactly one micro-batch; no micro-batch holds more than the cap;
every rank has the same number of micro-batches (an empty one still takes part in collectives). Costs (FLOPs) are
balanced over the micro-batches that run at the same time, and over ranks, which exchange sequences at last. Pure and
deterministic.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
    shares = _to_ranks(bins, costs, ranks)
    if ranks > 1:
        _Exchange(lengths, costs, cap, shares).run()
    return tuple(tuple(tuple(sorted(members)) for members in share) for share in shares)


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


def _to_ranks(bins: list[list[int]], costs: Sequence[float], ranks: int) -> list[list[list[int]]]:
    """Give out micro-batches in rounds of similar cost; in a round the rank with the least so far gets the dearest."""
    totals = [sum(costs[i] for i in members) for members in bins]
    dearest = sorted(range(len(bins)), key=lambda b: (-totals[b], b))
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for start in range(0, len(dearest), ranks):
        poorest = sorted(range(ranks), key=lambda r: (load[r], r))
        for rank, b in zip(poorest, dearest[start : start + ranks], strict=True):
            shares[rank].append(bins[b])
            load[rank] += totals[b]
    return shares


class _Exchange:
    """Moves and swaps sequences between the dearest rank and another, the cap kept, while that evens them out."""

    _EVEN = 1e-4
    """Done where the dearest rank is this share above the mean: less cannot be measured."""
    _ROUNDING = 1e-9
    """Loads that differ by less than this share of the mean are equal."""
    _NEAR = 8
    """Partners tried on either side of the best one by cost: those may not fit by length."""

    def __init__(self, lengths: Sequence[int], costs: Sequence[float], cap: int, shares: list[list[list[int]]]) -> None:
        self._shares, self._cap, self._steps = shares, cap, len(shares[0])
        # The last entry is no sequence: to swap with it is to move.
        self._lengths, self._costs = np.array([*lengths, 0]), np.array([*costs, 0.0])
        self._by_cost = np.argsort(self._costs[:-1], kind="stable")
        self._place = np.zeros((2, len(self._costs)), np.int64)
        """Rank and step of each sequence."""
        for rank, share in enumerate(shares):
            for step, members in enumerate(share):
                self._place[:, members] = [[rank], [step]]
        self._tokens = np.array([[self._lengths[members].sum() for members in share] for share in shares])
        self._bins = np.array([[self._costs[members].sum() for members in share] for share in shares])
        """Cost of each micro-batch, ``[ranks, steps]``."""

    def run(self) -> None:
        """Change the shares in place. Each exchange lowers the dearer of two ranks, so it ends."""
        loads = self._bins.sum(1)
        while loads.max() > (1 + self._EVEN) * loads.mean():
            dearest, others = int(loads.argmax()), np.argsort(loads, kind="stable")
            if not any(self._exchange(dearest, int(other), loads) for other in others if other != dearest):
                return
            loads = self._bins.sum(1)

    def _exchange(self, dear: int, cheap: int, loads: npt.NDArray[np.float64]) -> bool:
        """Carry out the exchange that best evens the two out without making a step longer; False if there is none.

        Ranks wait for each other in every step: what lengthens a step's longest micro-batch counts like unevenness.
        """
        gap = loads[dear] - loads[cheap]
        # An exchange that turns two ranks over evens nothing out: by a rounding error it would go on for ever.
        least = self._ROUNDING * loads.mean()
        self._place[:, -1] = cheap, self._tokens[cheap].argmin()
        one = self._members(dear)[:, None]
        theirs = np.concatenate([[len(self._costs) - 1], self._members(cheap)])
        best = np.searchsorted(self._costs[theirs], self._costs[one] - gap / 2)
        other = theirs[(best + np.arange(-self._NEAR, self._NEAR)).clip(0, len(theirs) - 1)]
        shift, growth = self._costs[one] - self._costs[other], self._lengths[one] - self._lengths[other]
        here, there = self._place[1][one], self._place[1][other]
        fits = (self._tokens[cheap, there] + growth <= self._cap) & (self._tokens[dear, here] - growth <= self._cap)
        longer = (self._bins[cheap, there] + shift - self._bins.max(0)[there]).clip(min=0)
        error = np.where(fits & (shift > least) & (shift < gap - least), np.abs(shift - gap / 2) + longer, np.inf)
        if not error.size or error.min() == np.inf:
            return False
        row, column = np.unravel_index(error.argmin(), error.shape)
        self._swap(int(one[row, 0]), int(other[row, column]))
        return True

    def _members(self, rank: int) -> npt.NDArray[np.int64]:
        """Sequences of the rank, cheapest first."""
        return self._by_cost[self._place[0][self._by_cost] == rank]

    def _swap(self, one: int, other: int) -> None:
        for gone, come in ((one, other), (other, one)):
            rank, step = self._place[:, gone]
            members = self._shares[rank][step]
            if gone < len(self._costs) - 1:
                members.remove(gone)
            if come < len(self._costs) - 1:
                members.append(come)
            self._tokens[rank, step] += self._lengths[come] - self._lengths[gone]
            self._bins[rank, step] += self._costs[come] - self._costs[gone]
        self._place[:, [one, other]] = self._place[:, [other, one]]
