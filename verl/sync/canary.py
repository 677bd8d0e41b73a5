"""After each sync: do engine and learner hold the same weights? A pure comparison of what both say of a fixed batch.

A sync can fail without an error (a packed copy left behind, a shard not sent, another version loaded), and training
then goes on, off-policy, and even seems to learn. Log-probs of a few fixed tokens show it at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verl.errors import InfrastructureError

# Past this many nats on average no rounding is to blame.
_OTHER_WEIGHTS = 1e-2

Probe = list[tuple[int, float, float]]
"""One side's answer to the canary's prompts: the most likely next token, its log-prob, its lead over the second."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one side says of the canary's sequences. One inner sequence a canary sequence, all with the same lengths."""

    logprobs: Sequence[Sequence[float]]
    """Log-prob of each token given those before it, at temperature 1; the first token's is ignored."""
    greedy: Sequence[Sequence[int]] = ()
    """The most likely continuation, token by token."""
    margins: Sequence[Sequence[float]] = ()
    """By how much, in nats, each greedy token beats the second best; a side that knows it lets ties be told from
    faults. Empty if unknown."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close the two sides are, in nats."""

    max_diff: float
    mean_diff: float


def check(
    engine: Reading, learner: Reading, version: int, *, max_diff: float, before: Reading | None = None
) -> Agreement:
    """Compare the two sides after the sync of weights ``version``; ``before`` is the learner's previous reading.

    Raises InfrastructureError, with the likely cause, if a log-prob differs by more than ``max_diff`` or a greedy token
    differs that is not a tie within ``max_diff``.
    """
    agreement = _compare(engine.logprobs, learner.logprobs)
    # Written so that NaN fails.
    if not agreement.max_diff <= max_diff:
        stale = before is not None and _compare(engine.logprobs, before.logprobs).max_diff <= max_diff
        raise InfrastructureError(
            f"canary: after the sync of weights version {version} engine and learner differ by "
            f"{agreement.max_diff:.3g} (max) and {agreement.mean_diff:.3g} (mean) nats, allowed {max_diff:.3g}; "
            + _cause(agreement, stale)
        )
    differing = _first_difference(engine, learner, max_diff)
    if differing is not None:
        sequence, position = differing
        raise InfrastructureError(
            f"canary: after the sync of weights version {version} the greedy tokens of sequence {sequence} differ "
            f"from position {position} on though log-probs agree: is the engine's sampler or vocabulary another one?"
        )
    return agreement


def _compare(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Agreement:
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        raise ValueError("the two readings are not of the same sequences")
    diffs = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x[1:], y[1:], strict=True)]
    if not diffs:
        raise ValueError("a canary needs a sequence of two tokens or more")
    # max() lets NaN slip by, depending on where it stands.
    worst = math.nan if any(map(math.isnan, diffs)) else max(diffs)
    return Agreement(worst, sum(diffs) / len(diffs))


def _cause(agreement: Agreement, stale: bool) -> str:
    if math.isnan(agreement.max_diff):
        return "NaN: the weights sent or the engine's activations are not finite"
    if stale:
        return "the engine still answers with the previous weights: the update did not reach it"
    if agreement.mean_diff > _OTHER_WEIGHTS:
        return (
            "too much for rounding: some of its weights are others, a tied LM head or a shard that kept an old copy, "
            "or a tensor sent under a wrong name"
        )
    return "about the size of rounding: do both sides compute in the same dtype? In bfloat16 allow more"


def _first_difference(engine: Reading, learner: Reading, tie: float) -> tuple[int, int] | None:
    margins = learner.margins or [[math.inf] * len(row) for row in learner.greedy]
    for sequence, (ours, theirs, gaps) in enumerate(zip(engine.greedy, learner.greedy, margins, strict=True)):
        for position, (a, b, gap) in enumerate(zip(ours, theirs, gaps, strict=True)):
            if a != b and gap > tie:
                return sequence, position
            if a != b:
                break  # a tie: what follows continues another text
    return None
