"""What a step trains on besides its own samples, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from verl.algorithms.config import LossConfig
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.trainer.config import TrainerConfig
from verl.trainer.mixture import mixed
from verl.trainer.phases import reinforcement_phase

NLL = LossConfig(name="weighted_nll")


def samples(first: int, count: int) -> list[TrainingSample]:
    """Told apart by their only token."""
    one = np.ones(1, np.float32)
    return [TrainingSample(np.array([n], np.int32), one > 0, one, one * 0) for n in range(first, first + count)]


def tokens(found: list[TrainingSample]) -> list[int]:
    return [int(sample.token_ids[0]) for sample in found]


def test_a_step_is_left_as_it_is_unless_more_is_asked_for() -> None:
    own = samples(0, 5)
    assert mixed(own, samples(100, 3), TrainerConfig(), seed=0, step=1) is own
    assert mixed([], samples(100, 3), TrainerConfig(loss=NLL, mixed_traces=2), seed=0, step=1) == []


def test_each_pass_has_every_sample_and_trace_once_in_an_order_of_its_own() -> None:
    config = TrainerConfig(loss=NLL, mixed_traces=4, passes=2)
    found = tokens(mixed(samples(0, 20), samples(100, 6), config, seed=0, step=3))
    first, second = found[:24], found[24:]
    assert set(first) == set(second) == {*range(20), *(n for n in first if n >= 100)}
    assert len(set(first)) == 24
    assert first != second
    assert max(i for i, n in enumerate(first) if n < 100) > min(i for i, n in enumerate(first) if n >= 100)
    assert found == tokens(mixed(samples(0, 20), samples(100, 6), config, seed=0, step=3)), "known from the step alone"


def test_steps_take_traces_in_turn() -> None:
    config = TrainerConfig(loss=NLL, mixed_traces=4)
    taken = [n for step in range(3) for n in tokens(mixed(samples(0, 2), samples(100, 6), config, seed=0, step=step))]
    assert Counter(n for n in taken if n >= 100) == dict.fromkeys(range(100, 106), 2)


def test_traces_are_mixed_into_a_likelihood_alone() -> None:
    with pytest.raises(UserError, match=r"mixed_traces=4 with loss\.name=ppo_clip: nobody sampled them"):
        TrainerConfig(mixed_traces=4)


def test_with_a_fresh_optimizer_the_schedule_spans_one_step() -> None:
    assert reinforcement_phase(TrainerConfig(steps=4, loss=NLL), 8).optimizer_steps == 32
    assert reinforcement_phase(TrainerConfig(steps=4, loss=NLL, fresh_optimizer=True), 8).optimizer_steps == 8
