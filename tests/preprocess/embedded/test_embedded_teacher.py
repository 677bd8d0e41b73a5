"""The teacher's traces: episodes of the protocol, with the policy mask on the teacher's words and on nothing else."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from preprocess.embedded.search import retriever
from preprocess.embedded.splits import Split, draw_splits
from preprocess.embedded.styles import StyleName, make_style
from preprocess.embedded.teacher import Behaviour, Mixture, draw_traces, record_trace, teach
from preprocess.embedded.tiny_model import train_tokenizer
from search_agent import environment
from search_agent.protocols.base import SearchProtocol
from search_agent.protocols.framing import Framing, make_framing
from search_agent.retrieval.types import SearchResult
from verl.data.samples import TrainingSample
from verl.data.tasks import Task
from verl.rollout.interfaces import Environment, Generation
from verl.trajectory import Trajectory

STYLES: tuple[StyleName, ...] = ("autorefine", "search_r1", "research", "exsearch")


class Bytes:
    """One id a byte, and no template: enough to see whose text each token is."""

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


BYTES: Any = Framing("plain", Bytes())  # type: ignore[arg-type]


class Remembered:
    """A world's corpus as the live environment is given it."""

    def __init__(self, split: Split) -> None:
        self.retrieve = retriever(split.world)

    async def search(self, query: str, k: int, **_: Any) -> SearchResult:
        return SearchResult(tuple(self.retrieve(query))[:k], 0.0, False)


async def run_again(recorded: Trajectory, episode: Environment) -> Trajectory:
    """The live episode in which the policy samples what the recorded one generated."""
    live = Trajectory(recorded.task_id, recorded.sample)
    prompt = await episode.start()
    live.append_prompt(prompt.token_ids, prompt.text)
    for segment in recorded.generated:
        assert episode.next_turn() is not None
        ids, reason = segment.token_ids.tolist(), segment.finish_reason
        assert reason is not None
        zeros = [0] * len(ids)
        live.append_generated(ids, segment.text, zeros, zeros, reason)
        observation = await episode.observe(Generation(ids, segment.text, zeros, zeros, reason))
        if observation is not None:
            live.append_observation(observation.token_ids, observation.text, observation.calls)
    assert episode.next_turn() is None
    assert episode.outcome() == ("finished", "")
    return live


@pytest.fixture(scope="module")
def split() -> Split:
    return draw_splits(seed=0, dev_questions=20, test_questions=20)["train"]


def trace(
    split: Split, kind: str, behaviour: Behaviour, style: StyleName = "autorefine"
) -> tuple[Task, Trajectory, SearchProtocol]:
    task = next(task for task in split.tasks if task.metadata["kind"] == kind)
    written = make_style(style)
    texts = [text for step in teach(task, split.world, behaviour, random.Random(0)) for text in written.write(step)]
    return task, record_trace(task, texts, written.protocol, BYTES, retriever(split.world)), written.protocol


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("kind", "searches"), [("author", 1), ("born", 1), ("bridge", 2)])
def test_good_behaviour_reads_each_hop_and_answers_rightly(
    split: Split, kind: str, searches: int, style: StyleName
) -> None:
    task, trajectory, protocol = trace(split, kind, "good", style)
    reading = protocol.read(trajectory)
    assert (reading.answer, len(reading.searches)) == (task.golden_answers[0], searches)
    assert reading.format_valid
    found = [[result.id for result in call.results] for call in trajectory.calls]
    wanted = task.metadata["supporting_ids"]
    assert all(passage in results for passage, results in zip(wanted, found, strict=True))


def test_a_refinement_copies_a_sentence_of_the_documents(split: Split) -> None:
    _, trajectory, protocol = trace(split, "bridge", "good")
    notes = protocol.read(trajectory).refinements
    shown = [segment.text for segment in trajectory.segments if segment.kind == "observation"]
    assert len(notes) == 2
    assert all(note in text for note, text in zip(notes, shown, strict=True))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("behaviour", "searches"), [("guess", 1), ("recall", 0)])
def test_failures_keep_the_format_and_search_too_little(
    split: Split, behaviour: Behaviour, searches: int, style: StyleName
) -> None:
    _, trajectory, protocol = trace(split, "bridge", behaviour, style)
    reading = protocol.read(trajectory)
    assert (len(reading.searches), reading.format_valid) == (searches, True)
    assert reading.answer in split.world.names.cities


@pytest.mark.parametrize("style", STYLES)
async def test_a_trace_has_the_ids_of_a_live_episode_that_generates_the_same(
    split: Split, style: StyleName, tmp_path: Path
) -> None:
    written = make_style(style)
    tokenizer = train_tokenizer([written.protocol.prompt(task.question) for task in split.tasks], tmp_path)
    make = environment.build(
        environment.Config(max_turns=4, top_k=2, framing=written.framing),
        protocol=written.protocol,
        tokenizer=tokenizer,
        retriever=Remembered(split),
        max_context_tokens=1024,
    )
    tasks = {task.id: task for task in split.tasks}
    framing = make_framing(written.framing, tokenizer, system=None, probe=written.protocol.prompt("who?"))
    traces = draw_traces([split], 40, 0, written, framing)
    asked = 1 if style == "exsearch" else 0  # the turn that ends the search has no answer yet
    assert {trace.num_turns - asked for trace in traces} == {1, 2, 3}
    for recorded in traces:
        live = await run_again(recorded, make(tasks[recorded.task_id]))
        assert live.token_ids().tolist() == recorded.token_ids().tolist()
        assert live.policy_mask().tolist() == recorded.policy_mask().tolist()
        assert [segment.text for segment in live.segments] == [segment.text for segment in recorded.segments]


def test_the_policy_mask_covers_the_teachers_words_alone(split: Split) -> None:
    _, trajectory, _ = trace(split, "bridge", "good")
    sample = TrainingSample.from_trajectory(trajectory, 1.0)
    trained = bytes(sample.token_ids[sample.policy_mask].tolist()).decode()
    assert trained == "".join(segment.text for segment in trajectory.generated)
    assert "<documents>" not in trained
    assert "Question" not in trained
    assert trained.endswith("</answer>")
    assert not sample.rollout_logprobs.any()
    assert Trajectory.from_record(trajectory.to_record()).to_record() == trajectory.to_record()


def test_behaviours_are_drawn_in_their_shares(split: Split) -> None:
    mixture = Mixture()
    traces = draw_traces([split], 2000, 0, make_style("autorefine"), BYTES)
    hops = {task.id: task.metadata["hops"] for task in split.tasks}
    turns = {count: Counter(t.num_turns for t in traces if hops[t.task_id] == count) for count in (1, 2)}
    for count, behaviours in ((1, {1: "recall", 2: "good"}), (2, {1: "recall", 2: "guess", 3: "good"})):
        shares = mixture.one_hop if count == 1 else mixture.two_hop
        for turn, behaviour in behaviours.items():
            seen = turns[count][turn] / turns[count].total()
            assert seen == pytest.approx(shares[behaviour], abs=0.05)  # type: ignore[index]


def test_the_mixture_sums_to_one() -> None:
    mixture = Mixture()
    assert sum(mixture.one_hop.values()) == pytest.approx(1)
    assert sum(mixture.two_hop.values()) == pytest.approx(1)
