"""Which questions stand in which split, and over which world's facts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocess.embedded.facts import Names, QuestionKind, World, draw_all_names, draw_questions, draw_world
from verl.data.tasks import Task
from verl.seeds import derive_seed

HELD_OUT = 0.2
"""Share of works and of people that no training question is about."""
ONE_HOP = 0.4
"""Share of one-hop questions in every split."""
WARMUP_WORLDS = 8
"""Worlds that the warm-up's questions are spread over: more make it harder to learn facts by heart and take longer."""


@dataclass(frozen=True, slots=True)
class Split:
    """Questions and the world whose facts answer them."""

    world: World
    tasks: list[Task]


def draw_splits(seed: int, dev_questions: int, test_questions: int) -> dict[str, Split]:
    """``train`` and ``test`` over one world, ``dev`` and ``clean`` each over a world of its own.

    ``test`` asks about works and people that ``train`` never asks about.
    """
    names = draw_all_names(seed)
    train_world = draw_world(names, seed, "train")
    dev_world = draw_world(names, seed, "dev", [train_world])
    clean_world = draw_world(names, seed, "clean", [train_world, dev_world])
    known, unknown = _known_and_held_out(names, seed)
    return {
        "train": _largest_split("train", train_world, known, seed),
        "test": _split("test", train_world, unknown, unknown.works, _questions(unknown.works), seed),
        "dev": _split("dev", dev_world, names, names.works, dev_questions, seed),
        "clean": _split("clean", clean_world, names, names.works, test_questions, seed),
    }


def draw_warmup(splits: Mapping[str, Split], seed: int, worlds: int = WARMUP_WORLDS) -> list[Split]:
    """Questions for the warm-up over worlds of their own, about the names that ``train`` may ask about.

    Over several worlds one question has several answers, so the warm-up cannot be learned by heart, only by reading;
    no fact of theirs holds in the worlds of ``splits``.
    """
    others = [splits[label].world for label in ("train", "dev", "clean")]
    names = others[0].names
    known, _ = _known_and_held_out(names, seed)
    labels = [f"warmup{number}" for number in range(worlds)]
    return [_largest_split(label, draw_world(names, seed, label, others), known, seed) for label in labels]


def _known_and_held_out(names: Names, seed: int) -> tuple[Names, Names]:
    """The names that training may ask about, and the others; every city is in both."""
    rng = random.Random(derive_seed(seed, "held out"))
    works, people = (set(rng.sample(each, round(len(each) * HELD_OUT))) for each in (names.works, names.people))

    def part(held_out: bool) -> Names:
        return Names(
            people=tuple(person for person in names.people if (person in people) == held_out),
            works=tuple(work for work in names.works if (work in works) == held_out),
            cities=names.cities,
        )

    return part(False), part(True)


def _largest_split(label: str, world: World, pool: Names, seed: int) -> Split:
    """As many questions as there are works in the pool whose author is in it too."""
    people = set(pool.people)
    bridges = tuple(work for work in pool.works if world.author[work] in people)
    return _split(label, world, pool, bridges, _questions(bridges), seed)


def _questions(bridge_works: Sequence[str]) -> int:
    """How many questions there are if every one of these works is asked about in two hops."""
    return int(len(bridge_works) / (1 - ONE_HOP))


def _split(label: str, world: World, pool: Names, bridge_works: Sequence[str], count: int, seed: int) -> Split:
    subjects: dict[QuestionKind, Sequence[str]] = {"author": pool.works, "born": pool.people, "bridge": bridge_works}
    return Split(world, draw_questions(world, subjects, _counts(count), label, seed))


def _counts(questions: int) -> dict[QuestionKind, int]:
    one_hop = round(questions * ONE_HOP)
    return {"author": one_hop // 2, "born": one_hop - one_hop // 2, "bridge": questions - one_hop}
