"""A trajectory crosses processes and files unchanged, whatever its segments are."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from verl.trajectory import ToolCall, ToolResult, Trajectory

TURNS = st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 5)), max_size=4)


def played(turns: list[tuple[int, int]]) -> Trajectory:
    """Turns of ``(generated tokens, observed tokens)``; -1 means that no observation follows."""
    trajectory = Trajectory("task", 3, reward=0.5, reward_parts={"em": 1.0}, turn_gains=(0.5,), images=("a.png",))
    if turns:
        trajectory.append_prompt([1, 2, 3], "the prompt <think>", prefill="<think>")
    for number, (generated, observed) in enumerate(turns):
        ids = list(range(generated))
        trajectory.append_generated(ids, "said", [-0.1 * i for i in ids], [number] * generated, "stop")
        if observed >= 0:
            calls = [ToolCall("search", "query", (ToolResult("d", 1.5, "title"),), 0.25)]
            last = number == len(turns) - 2
            trajectory.append_observation(list(range(observed)), "seen", calls, prefill="<think>", last_call=last)
    trajectory.outcome = "finished"
    return trajectory


def same(one: Trajectory, other: Trajectory) -> None:
    assert one.to_record() == other.to_record()
    for mine, theirs in zip(one.segments, other.segments, strict=True):
        for name in ("token_ids", "logprobs", "versions"):
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
        assert (mine.calls, mine.prefill, mine.last_call) == (theirs.calls, theirs.prefill, theirs.last_call)
    assert one.images == other.images
    assert [turn.text for turn in one.turns] == [turn.text for turn in other.turns]


@given(TURNS)
def test_pickling_and_copying_keep_every_segment(turns: list[tuple[int, int]]) -> None:
    trajectory = played(turns)
    same(pickle.loads(pickle.dumps(trajectory)), trajectory)  # noqa: S301
    same(copy.deepcopy(trajectory), trajectory)


@given(TURNS)
def test_a_record_is_json_and_reads_back(turns: list[tuple[int, int]]) -> None:
    trajectory = played(turns)
    same(Trajectory.from_record(json.loads(json.dumps(trajectory.to_record()))), trajectory)


def test_a_turn_is_read_with_what_began_it() -> None:
    trajectory = played([(2, 2), (1, -1), (1, -1)])
    assert [turn.text for turn in trajectory.turns] == ["<think>said", "<think>said", "said"]
    assert [segment.text for segment in trajectory.generated] == ["said"] * 3, "what was sampled is as it was"


def test_a_pickle_has_few_buffers_however_many_turns_there_are() -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(played([(5, 5)] * 20), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 3


def test_an_unpickled_trajectory_can_go_on() -> None:
    trajectory = pickle.loads(pickle.dumps(played([(2, 2)])))  # noqa: S301
    trajectory.append_generated([7], "more", [-1.0], [4], "length")
    assert np.array_equal(trajectory.versions(), [-1, -1, -1, 0, 0, -1, -1, 4])
