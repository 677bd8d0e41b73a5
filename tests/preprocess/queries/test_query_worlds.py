"""The worlds in which a question is a poor query."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from preprocess.queries.build import write_database
from preprocess.queries.spelling import first_spelling, second_spellings, spell
from preprocess.queries.worlds import Kind, QueryWorld, draw, either
from search_agent.protocols import deepretrieval
from search_agent.protocols.actions import Answer, Turns
from search_agent.rewards.deepretrieval import relevant
from search_agent.standins.boolean import Library, Record
from verl.data.tasks import Task

COUNTS = {"train": 200, "dev": 50, "test": 100}
KINDS: tuple[Kind, ...] = ("passages", "articles", "database")


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest) -> QueryWorld:
    return draw(request.param, 0, COUNTS)


def test_spellings_are_one_to_one_and_stem_apart() -> None:
    import Stemmer

    spellings = second_spellings()
    stem = Stemmer.Stemmer("english").stemWord
    everyone = [*spellings, *spellings.values()]
    assert len({stem(word) for word in everyone}) == len(everyone)
    assert first_spelling(spell("crimson harbor", random.Random(0), 1.0)) == "crimson harbor"


def test_the_same_seed_draws_the_same_world_and_another_another() -> None:
    one, same, other = (draw("articles", seed, COUNTS) for seed in (0, 0, 1))
    assert (one.corpus, one.train) == (same.corpus, same.train)
    assert one.corpus != other.corpus


def test_no_name_of_the_test_is_asked_about_in_training(world: QueryWorld) -> None:
    def subjects(split: Sequence[Task]) -> set[str]:
        return {first_spelling(task.metadata.get("subject", task.question)) for task in split}

    assert subjects(world.train).isdisjoint(subjects(world.test) | subjects(world.dev))
    assert {name: len(getattr(world, name)) for name in COUNTS} == COUNTS


def test_the_teacher_writes_the_protocols_format(world: QueryWorld) -> None:
    protocol = deepretrieval.build(deepretrieval.Config("sql_short" if world.tables else "short"))
    for task in world.train[:50]:
        text = protocol.prefill + world.teach(task, random.Random(1))
        action = protocol.parse(Turns([text]))
        assert isinstance(action, Answer)
        assert action.call is not None
        assert deepretrieval.tags_once(text, protocol.blocks)


def test_a_query_that_names_both_spellings_finds_every_article_and_the_question_few() -> None:
    world = draw("articles", 0, COUNTS)
    library = Library(Record(row["id"], *row["contents"].split("\n")) for row in world.corpus)

    def recall(query: str, wanted: set[str]) -> float:
        return len({record.id for record in library.search(query)} & wanted) / len(wanted)

    raw, good = [], []
    for task in world.test:
        wanted = set(relevant(task))
        raw.append(recall(task.question, wanted))
        good.append(recall(" AND ".join(f"({either(word)})" for word in task.question.split()), wanted))
    assert min(good) == 1
    assert 0.15 < sum(raw) / len(raw) < 0.4


def test_every_sql_of_a_task_runs_and_the_teacher_is_often_wrong(tmp_path: Path) -> None:
    world = draw("database", 0, COUNTS)
    write_database(tmp_path / "library.sqlite", world.tables)
    connection = sqlite3.connect(tmp_path / "library.sqlite")
    for task in [*world.train, *world.test]:
        assert connection.execute(task.metadata["sql"]).fetchall()
    rng = random.Random(0)
    right = sum(task.metadata["sql"] in world.teach(task, rng) for task in world.train)
    assert 0.3 < right / len(world.train) < 0.5
