"""Warm-up traces of an imperfect teacher, written segment by segment as the live environment would write them.

The teacher mixes good behaviour (search, note the fact down, search again where the question has two hops, answer with
what was read) with the failures that reinforcement is to remove: guessing after one search, and answering without a
search. Every segment is tokenised by itself, exactly as in a rollout, so a trace's ids and policy mask are those of an
episode in which the policy had generated the same text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from preprocess.embedded.facts import World, person_sentence, work_sentence
from preprocess.embedded.search import retriever
from preprocess.embedded.splits import Split
from preprocess.embedded.styles import Step, Style
from preprocess.embedded.tiny_model import END_OF_MESSAGE, END_OF_TEXT
from search_agent.protocols.actions import Call, Say, Turns
from search_agent.protocols.base import SearchProtocol
from search_agent.protocols.framing import Framing, encode_markup
from search_agent.protocols.observation import show
from search_agent.retrieval.types import Document
from verl.data.tasks import Task
from verl.seeds import derive_seed
from verl.trajectory import FinishReason, ToolCall, ToolResult, Trajectory

Behaviour = Literal["good", "guess", "recall"]
Retrieve = Callable[[str], Sequence[Document]]
_NO_LIMIT = 1 << 20
"""Tokens that an observation may have: live episodes are given room for what the teacher is shown."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often the teacher behaves in which way, by the number of hops; each mapping sums to 1.

    One-hop questions are mostly answered rightly and two-hop ones mostly not, so that after the warm-up there is
    something to select, and enough of it in a group of 8 samples: 1 - 0.8 ** 8 is 0.83.
    """

    one_hop: Mapping[Behaviour, float] = field(default_factory=lambda: {"good": 0.78, "recall": 0.22})
    two_hop: Mapping[Behaviour, float] = field(default_factory=lambda: {"good": 0.20, "guess": 0.64, "recall": 0.16})

    def draw(self, hops: int, rng: random.Random) -> Behaviour:
        """One behaviour for a question of so many hops."""
        shares = self.one_hop if hops == 1 else self.two_hop
        return rng.choices(list(shares), weights=list(shares.values()))[0]


def draw_traces(
    splits: Sequence[Split], count: int, seed: int, style: Style, framing: Framing, mixture: Mixture | None = None
) -> list[Trajectory]:
    """``count`` traces, each split and each of its tasks as often as any other, the teacher's behaviour drawn anew."""
    rng, mixture = random.Random(derive_seed(seed, "traces")), mixture or Mixture()
    traces: list[Trajectory] = []
    for number, split in enumerate(splits, start=1):
        retrieve = retriever(split.world)
        while wanted := count * number // len(splits) - len(traces):
            for task in rng.sample(split.tasks, min(len(split.tasks), wanted)):
                steps = teach(task, split.world, mixture.draw(task.metadata["hops"], rng), rng)
                texts = [text for step in steps for text in style.write(step)]
                traces.append(record_trace(task, texts, style.protocol, framing, retrieve))
    rng.shuffle(traces)
    return traces


def teach(task: Task, world: World, behaviour: Behaviour, rng: random.Random) -> list[Step]:
    """What the teacher does, one step a turn; the last one answers.

    Only ``good`` reads: it knows each fact because its passage, which names the subject, is among those it was shown.
    """
    subject, kind = task.metadata["subject"], task.metadata["kind"]
    wrong = rng.choice(world.names.people if kind == "author" else world.names.cities)
    if behaviour == "recall":
        return [Step(thought="i recall it.", answer=wrong)]
    if kind == "born":
        return _read_birthplace(subject, world, fact="")
    author = world.author[subject]
    first = Step(thought=f"who wrote {subject}?", query=subject)
    fact = work_sentence(subject, author)
    if kind == "author":
        return [first, Step(fact=fact, answer=author)]
    if behaviour == "guess":
        return [first, Step(fact=fact, answer=wrong)]
    return [first, *_read_birthplace(author, world, fact)]


def _read_birthplace(person: str, world: World, fact: str) -> list[Step]:
    city = world.birthplace[person]
    return [
        Step(fact=fact, thought=f"where was {person} born?", query=person),
        Step(fact=person_sentence(person, city), answer=city),
    ]


def record_trace(
    task: Task, texts: Sequence[str], protocol: SearchProtocol, framing: Framing, retrieve: Retrieve
) -> Trajectory:
    """The episode in which the policy generated ``texts``: finished, with zero log-probs and weights version 0."""
    trajectory = Trajectory(task.id, sample=0)
    prompt = framing.prompt(protocol.prompt(task.question))
    trajectory.append_prompt(prompt.token_ids, prompt.text)
    for number, text in enumerate(texts, 1):
        ids = encode_markup(framing.tokenizer, text)
        reason: FinishReason = "end_of_turn" if text.endswith((END_OF_TEXT, END_OF_MESSAGE)) else "stop"
        trajectory.append_generated(ids, text, [0.0] * len(ids), [0] * len(ids), reason)
        action = protocol.parse(Turns(texts[:number], task.question))
        calls, pieces = [], [action.text] if isinstance(action, Say) else []
        if isinstance(action, Call):
            documents = retrieve(action.request)
            pieces = protocol.observe_results(documents)
            results = tuple(ToolResult(d.id, d.score, d.title) for d in documents)
            calls.append(ToolCall(action.tool, action.request, results))
        shown = show(framing, pieces, last_token_id=ids[-1], limit=_NO_LIMIT) if pieces else None
        if shown is not None:
            trajectory.append_observation(shown.piece.token_ids, shown.piece.text, calls)
    trajectory.outcome = "finished"
    return trajectory
