"""The three small worlds: what can be found, the questions, and how an imperfect teacher asks. Pure."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from preprocess.embedded import names
from preprocess.embedded.facts import World, draw_all_names, draw_world, passages
from preprocess.queries.spelling import first_spelling, second_spellings, spell
from verl.data.tasks import Task
from verl.seeds import derive_seed

Kind = Literal["passages", "articles", "database"]
HELD_OUT = 0.3
"""Share of the names that no training question is about."""


@dataclass(frozen=True)
class QueryWorld:
    """What a run needs of one world."""

    corpus: list[dict[str, Any]]
    """Passages as rows of a FlashRAG corpus, with a ``date`` where they have one."""
    train: list[Task]
    dev: list[Task]
    test: list[Task]
    teach: Callable[[Task, random.Random], str]
    """What the teacher writes after the opened ``<think>``."""
    tables: Mapping[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]
    """Columns and rows of a database, by table; empty where there is none."""


def draw(kind: Kind, seed: int, questions: Mapping[str, int]) -> QueryWorld:
    """One world; ``questions`` says how many ``train``, ``dev`` and ``test`` have."""
    return {"passages": _passages, "articles": _articles, "database": _database}[kind](seed, questions)


def written(thought: str, key: str, query: str) -> str:
    """A turn after its opened ``<think>``."""
    return f" {thought} </think>\n<answer>{json.dumps({key: query})}</answer>"


def _splits(subjects: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Names to ask about; dev and test share those that training leaves out, half each."""
    rng = random.Random(derive_seed(seed, "held out"))
    shuffled = rng.sample(list(subjects), len(subjects))
    out = round(len(shuffled) * HELD_OUT)
    return {"dev": shuffled[: out // 2], "test": shuffled[out // 2 : out], "train": shuffled[out:]}


# -- passages: a name spelled in either way, and passages that spell it in one --

_CHANGED = 0.5
"""How often a question spells a word in the second way."""
_TRANSLATED = 0.6
"""How often the teacher finds the first spelling of such a word."""


def _passages(seed: int, questions: Mapping[str, int]) -> QueryWorld:
    world = draw_world(draw_all_names(seed), seed, "queries")
    every = passages(world)
    subject_of = {passage.title: passage for passage in every}
    tasks: dict[str, list[Task]] = {}
    for split, subjects in _splits(sorted(subject_of), seed).items():
        rng = random.Random(derive_seed(seed, "questions", split))
        tasks[split] = [
            _task(f"{split}-{number}", spell(name, rng, _CHANGED), {"relevant": [subject_of[name].id]})
            for number, name in enumerate(rng.choices(subjects, k=questions[split]))
        ]

    def teach(task: Task, rng: random.Random) -> str:
        words = [first_spelling(word) if rng.random() < _TRANSLATED else word for word in task.question.split()]
        return written(" ".join(words), "query", " ".join(words))

    return QueryWorld([passage.record() for passage in every], **tasks, teach=teach, tables={})


# -- articles: records spell each of two concepts in either way; a good query names both spellings --

_REVIEWS = 400
_HABITS = {"as it stands": 0.4, "one word": 0.35, "both words": 0.25}
"""How the teacher asks: with the spellings of the question, with both spellings of one word, or of both."""


def _articles(seed: int, questions: Mapping[str, int]) -> QueryWorld:
    rng = random.Random(derive_seed(seed, "articles"))
    reviews = names.draw_names(names.WORK_COLOURS, names.WORK_NOUNS, _REVIEWS, rng)
    corpus: list[dict[str, Any]] = []
    found: dict[str, list[str]] = {}
    for review in reviews:
        for _ in range(rng.randint(4, 10)):
            number = str(10_000 + len(corpus))
            found.setdefault(review, []).append(number)
            first, second = spell(review, rng, 0.5).split()
            text = (
                f"{second} in {first} : a study of {rng.choice(names.LAST_NAMES)} and {rng.choice(names.FIRST_NAMES)}."
            )
            date = f"{rng.randint(1990, 2020)}/{rng.randint(1, 12):02d}/{rng.randint(1, 28):02d}"
            corpus.append({"id": number, "contents": f'"{first} {second}"\n{text}', "date": date})
    tasks: dict[str, list[Task]] = {}
    for split, subjects in _splits(sorted(reviews), seed).items():
        draws = random.Random(derive_seed(seed, "questions", split))
        tasks[split] = [
            _task(f"{split}-{number}", spell(review, draws, 0.5), {"relevant": found[review]})
            for number, review in enumerate(draws.choices(subjects, k=questions[split]))
        ]
    return QueryWorld(corpus, **tasks, teach=_ask_for_articles, tables={})


def _ask_for_articles(task: Task, rng: random.Random) -> str:
    habit = rng.choices(list(_HABITS), weights=list(_HABITS.values()))[0]
    words = task.question.split()
    widened = {"as it stands": set(), "one word": {rng.randrange(len(words))}, "both words": set(range(len(words)))}
    parts = [f"({either(word)})" if index in widened[habit] else word for index, word in enumerate(words)]
    return written(habit, "query", " AND ".join(parts))


def either(word: str) -> str:
    """Both spellings of a word, the first one first."""
    first = first_spelling(word)
    return f"{first} OR {second_spellings()[first]}"


# -- database: questions whose answer is one SELECT away --

_ASKED = {
    "author": ("who wrote {}?", "SELECT author FROM works WHERE title = '{}'"),
    "born": ("where was {} born?", "SELECT city FROM people WHERE name = '{}'"),
    "near": ("what is near {}?", "SELECT near FROM cities WHERE name = '{}'"),
    "native": ("how many were born in {}?", "SELECT count(*) FROM people WHERE city = '{}'"),
    "wrote": ("what did {} write?", "SELECT title FROM works WHERE author = '{}'"),
    "bridge": (
        "where was the author of {} born?",
        "SELECT people.city FROM people JOIN works ON works.author = people.name WHERE works.title = '{}'",
    ),
}
_SQL_RIGHT = 0.4
"""How often the teacher writes the right statement; otherwise it takes that of the kind of question listed next."""


def _database(seed: int, questions: Mapping[str, int]) -> QueryWorld:
    world = draw_world(draw_all_names(seed), seed, "queries")
    subjects = {
        "author": world.names.works,
        "born": world.names.people,
        "near": world.names.cities,
        "native": tuple(sorted(set(world.birthplace.values()))),
        "wrote": tuple(sorted(set(world.author.values()))),
        "bridge": world.names.works,
    }
    apart = {
        name for kind in ("works", "people", "cities") for name in _splits(getattr(world.names, kind), seed)["train"]
    }
    tasks: dict[str, list[Task]] = {}
    for split in ("train", "dev", "test"):
        rng = random.Random(derive_seed(seed, "questions", split))
        tasks[split] = []
        for number in range(questions[split]):
            kind = rng.choice(list(_ASKED))
            name = rng.choice([name for name in subjects[kind] if (name in apart) == (split == "train")])
            question, sql = (text.format(name) for text in _ASKED[kind])
            tasks[split].append(_task(f"{split}-{number}", question, {"sql": sql, "kind": kind, "subject": name}))
    return QueryWorld([], **tasks, teach=_ask_database, tables=_tables(world))


def _ask_database(task: Task, rng: random.Random) -> str:
    kind = task.metadata["kind"]
    if rng.random() >= _SQL_RIGHT:
        kinds = list(_ASKED)
        kind = kinds[(kinds.index(kind) + 1) % len(kinds)]
    return written(kind, "sql", _ASKED[kind][1].format(task.metadata["subject"]))


def _tables(world: World) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    return {
        "works": (("title", "author"), list(world.author.items())),
        "people": (("name", "city"), list(world.birthplace.items())),
        "cities": (("name", "near"), list(world.neighbour.items())),
    }


def _task(task_id: str, question: str, metadata: Mapping[str, Any]) -> Task:
    """A task whose accepted answers are what a query is to find: passage ids, or the SQL."""
    answers = metadata.get("relevant") or [metadata["sql"]]
    return Task(task_id, question, tuple(answers), dict(metadata))
