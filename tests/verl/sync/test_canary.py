"""The canary tells agreement from each kind of silent failure."""

from __future__ import annotations

import math

import pytest

from verl.errors import InfrastructureError
from verl.sync.canary import Reading, check

LEARNER = Reading([[0.0, -1.0, -2.0], [0.0, -0.5]], [[4, 5], [6]], [[1.0, 2.0], [0.5]])
BEFORE = Reading([[0.0, -1.5, -2.5], [0.0, -1.5]])


def shifted(by: float) -> Reading:
    return Reading([[row[0], *(value + by for value in row[1:])] for row in LEARNER.logprobs], LEARNER.greedy)


def test_agreement_is_measured_without_the_first_token() -> None:
    engine = Reading([[9.0, -1.0, -2.25], [9.0, -0.5]], LEARNER.greedy)
    agreement = check(engine, LEARNER, 3, max_diff=0.5, before=BEFORE)
    assert (agreement.max_diff, agreement.mean_diff) == (0.25, pytest.approx(0.25 / 3))


def test_old_weights_are_named() -> None:
    engine = Reading(BEFORE.logprobs, LEARNER.greedy)
    with pytest.raises(InfrastructureError, match=r"version 3.*previous weights"):
        check(engine, LEARNER, 3, max_diff=1e-4, before=BEFORE)


def test_other_weights_are_told_from_rounding() -> None:
    with pytest.raises(InfrastructureError, match="tied LM head"):
        check(shifted(1.2), LEARNER, 3, max_diff=1e-4, before=BEFORE)
    with pytest.raises(InfrastructureError, match="rounding: do both"):
        check(shifted(1e-3), LEARNER, 3, max_diff=1e-4, before=BEFORE)


@pytest.mark.parametrize("place", [0, 1])
def test_nan_fails_wherever_it_stands(place: int) -> None:
    row = [0.0, -1.0, -2.0]
    row[1 + place] = math.nan
    with pytest.raises(InfrastructureError, match="NaN"):
        check(Reading([row, [0.0, -0.5]]), LEARNER, 3, max_diff=1e-4)


def test_greedy_tokens_must_agree_except_at_a_tie() -> None:
    other = Reading(LEARNER.logprobs, [[4, 9], [6]])
    with pytest.raises(InfrastructureError, match="sequence 0 differ from position 1"):
        check(other, LEARNER, 3, max_diff=1e-4)
    tie = Reading(LEARNER.logprobs, LEARNER.greedy, [[1.0, 1e-5], [0.5]])
    check(other, tie, 3, max_diff=1e-4)


def test_readings_of_other_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="same sequences"):
        check(Reading([[0.0, -1.0]]), LEARNER, 3, max_diff=1e-4)
