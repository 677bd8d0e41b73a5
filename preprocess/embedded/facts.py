"""The embedded world's facts, its documents and the questions over them. Pure: a seed in, plain records out.

Three kinds of fact, one document each: who wrote a work, where a person was born, which city a city lies near.
The three worlds (train, dev, clean) hold the same names, and no fact of one holds in another: what a model may have
kept in its weights from the train world is wrong in the other two, so a right answer there must have been read.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preprocess.embedded import names
from verl.data.tasks import Task
from verl.seeds import derive_seed

QuestionKind = Literal["author", "born", "bridge"]


@dataclass(frozen=True, slots=True)
class Names:
    """Who and what there is, the same in every world."""

    people: tuple[str, ...]
    works: tuple[str, ...]
    cities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class World:
    """One drawing of the facts; each mapping is whole over its kind of name."""

    names: Names
    author: dict[str, str]
    birthplace: dict[str, str]
    neighbour: dict[str, str]


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of a corpus."""

    id: str
    title: str
    text: str

    def record(self) -> dict[str, str]:
        """The row of a FlashRAG corpus: the title in double quotes on a line of its own, then the text."""
        return {"id": self.id, "contents": f'"{self.title}"\n{self.text}'}


def draw_all_names(seed: int, people: int = 600, works: int = 800, cities: int = 240) -> Names:
    """The names, drawn without replacement from all combinations of the inventories."""
    rng = random.Random(derive_seed(seed, "names"))
    return Names(
        people=names.draw_names(names.FIRST_NAMES, names.LAST_NAMES, people, rng),
        works=names.draw_names(names.WORK_COLOURS, names.WORK_NOUNS, works, rng),
        cities=names.draw_names(names.CITY_FIRST, names.CITY_SECOND, cities, rng),
    )


def draw_world(world_names: Names, seed: int, label: str, others: Sequence[World] = ()) -> World:
    """Draw every fact anew, so that none agrees with a fact of the ``others``."""
    rng = random.Random(derive_seed(seed, "facts", label))

    def link(subjects: tuple[str, ...], objects: tuple[str, ...], earlier: list[dict[str, str]]) -> dict[str, str]:
        return {
            subject: _choose(objects, {subject, *(mapping[subject] for mapping in earlier)}, rng)
            for subject in subjects
        }

    return World(
        names=world_names,
        author=link(world_names.works, world_names.people, [other.author for other in others]),
        birthplace=link(world_names.people, world_names.cities, [other.birthplace for other in others]),
        neighbour=link(world_names.cities, world_names.cities, [other.neighbour for other in others]),
    )


def _choose(options: tuple[str, ...], excluded: set[str], rng: random.Random) -> str:
    return rng.choice([option for option in options if option not in excluded])


def work_sentence(work: str, author: str) -> str:
    """The fact as its document states it."""
    return f"{work} was written by {author}."


def person_sentence(person: str, city: str) -> str:
    """The fact as its document states it."""
    return f"{person} was born in {city}."


def city_sentence(city: str, neighbour: str) -> str:
    """The fact as its document states it."""
    return f"{city} is a city near {neighbour}."


def passages(world: World) -> list[Passage]:
    """The corpus: one passage a name, works first, then people, then cities."""
    facts = (
        [(work, work_sentence(work, author)) for work, author in world.author.items()]
        + [(person, person_sentence(person, city)) for person, city in world.birthplace.items()]
        + [(city, city_sentence(city, neighbour)) for city, neighbour in world.neighbour.items()]
    )
    return [Passage(passage_id(name), name, text) for name, text in facts]


def author_question(world: World, work: str, task_id: str) -> Task:
    """One hop: who wrote the work."""
    return _task(task_id, f"Who wrote {work}?", world.author[work], "author", [work])


def born_question(world: World, person: str, task_id: str) -> Task:
    """One hop: where the person was born."""
    return _task(task_id, f"Where was {person} born?", world.birthplace[person], "born", [person])


def bridge_question(world: World, work: str, task_id: str) -> Task:
    """Two hops: where the work's author was born."""
    author = world.author[work]
    return _task(task_id, f"Where was the author of {work} born?", world.birthplace[author], "bridge", [work, author])


def draw_questions(
    world: World,
    subjects: Mapping[QuestionKind, Sequence[str]],
    counts: Mapping[QuestionKind, int],
    split: str,
    seed: int,
) -> list[Task]:
    """Different questions, as many of each kind as ``counts`` says, about names of ``subjects``; shuffled.

    Raises ValueError if there are not as many names to ask about.
    """
    rng = random.Random(derive_seed(seed, "questions", split))
    ask = {"author": author_question, "born": born_question, "bridge": bridge_question}
    chosen = [(kind, name) for kind, count in counts.items() for name in rng.sample(list(subjects[kind]), count)]
    rng.shuffle(chosen)
    return [ask[kind](world, name, f"{split}-{index}") for index, (kind, name) in enumerate(chosen)]


def _task(task_id: str, question: str, answer: str, kind: QuestionKind, chain: list[str]) -> Task:
    """``chain``: the names whose documents lead to the answer, beginning with the one the question is about."""
    supporting = [passage_id(name) for name in chain]
    metadata = {"hops": len(chain), "kind": kind, "subject": chain[0], "supporting_ids": supporting}
    return Task(task_id, question, (answer,), metadata)


def passage_id(name: str) -> str:
    """The id of the document about a name, the same in every world."""
    return name.replace(" ", "-")
