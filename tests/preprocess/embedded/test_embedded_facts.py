"""The embedded world's facts: worlds that share names and no fact, splits that share no question."""

from __future__ import annotations

import itertools

import pytest
import Stemmer

from preprocess.embedded import names
from preprocess.embedded.facts import World, draw_all_names, draw_world, passage_id, passages
from preprocess.embedded.splits import Split, draw_splits, draw_warmup
from search_agent.retrieval.backends.bm25 import Bm25
from search_agent.retrieval.index.postings import build_postings

INVENTORIES = (
    names.FIRST_NAMES,
    names.LAST_NAMES,
    names.WORK_COLOURS,
    names.WORK_NOUNS,
    names.CITY_FIRST,
    names.CITY_SECOND,
)


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return draw_splits(seed=0, dev_questions=200, test_questions=600)


def test_no_two_words_of_the_inventories_share_a_stem() -> None:
    stem = Stemmer.Stemmer("english").stemWord
    stems = [stem(word) for inventory in INVENTORIES for word in inventory]
    assert len(stems) == len(set(stems)) == 320


def test_a_seed_gives_one_world_and_another_seed_another() -> None:
    assert draw_splits(3, 20, 20) == draw_splits(3, 20, 20)
    assert draw_splits(3, 20, 20)["train"].tasks != draw_splits(4, 20, 20)["train"].tasks


def test_no_fact_of_one_world_holds_in_another(splits: dict[str, Split]) -> None:
    corpora = {
        label: {passage.text for passage in passages(splits[label].world)} for label in ("train", "dev", "clean")
    }
    assert all(len(corpus) == 1640 for corpus in corpora.values())
    for one, other in itertools.combinations(corpora.values(), 2):
        assert not one & other


def test_a_world_can_be_redrawn_against_several() -> None:
    all_names = draw_all_names(0, people=12, works=12, cities=12)
    worlds: list[World] = []
    for label in ("a", "b", "c", "d"):
        worlds.append(draw_world(all_names, 0, label, worlds))
    assert all(len({world.author[work] for world in worlds}) == 4 for work in all_names.works)
    assert all(city != world.neighbour[city] for world in worlds for city in all_names.cities)


def test_every_gold_answer_stands_in_the_last_supporting_passage_and_every_hop_leads_there(
    splits: dict[str, Split],
) -> None:
    for split in splits.values():
        by_id = {passage.id: passage for passage in passages(split.world)}
        for task in split.tasks:
            chain = [by_id[passage] for passage in task.metadata["supporting_ids"]]
            assert len(chain) == task.metadata["hops"]
            assert chain[0].title in task.question
            assert task.golden_answers[0] in chain[-1].text
            assert all(after.title in before.text for before, after in itertools.pairwise(chain))


def test_question_ids_are_unique_and_two_fifths_have_one_hop(splits: dict[str, Split]) -> None:
    ids = [task.id for split in splits.values() for task in split.tasks]
    assert len(ids) == len(set(ids))
    for split in splits.values():
        one_hop = sum(task.metadata["hops"] == 1 for task in split.tasks)
        assert one_hop / len(split.tasks) == pytest.approx(0.4, abs=0.01)


def test_training_questions_never_lead_over_what_the_test_questions_ask_about(splits: dict[str, Split]) -> None:
    asked = {task.metadata["subject"] for task in splits["test"].tasks}
    trained = {passage for task in splits["train"].tasks for passage in task.metadata["supporting_ids"]}
    assert not {passage_id(name) for name in asked} & trained
    assert not {t.question for t in splits["train"].tasks} & {t.question for t in splits["test"].tasks}


def test_the_warm_up_has_worlds_of_its_own_and_asks_about_no_held_out_name(splits: dict[str, Split]) -> None:
    warmup = draw_warmup(splits, seed=0, worlds=3)
    told = {passage.text for split in splits.values() for passage in passages(split.world)}
    held_out = {passage_id(task.metadata["subject"]) for task in splits["test"].tasks}
    for split in warmup:
        assert not told & {passage.text for passage in passages(split.world)}
        assert not held_out & {passage for task in split.tasks for passage in task.metadata["supporting_ids"]}
    assert len({task.id for split in warmup for task in split.tasks}) == sum(len(split.tasks) for split in warmup)


def test_searching_for_a_name_finds_its_passage_first(splits: dict[str, Split]) -> None:
    """All 1400 works and people of the clean world: the share found first is 1.0, so copying is what is hard."""
    world = splits["clean"].world
    corpus = passages(world)
    engine = Bm25(build_postings(passage.record()["contents"] for passage in corpus))
    queries = [*world.names.works, *world.names.people]
    found = engine.search(queries, 2)
    first = [corpus[hits[0].doc].title == query for query, hits in zip(queries, found, strict=True)]
    assert sum(first) / len(first) >= 0.99
    assert all(len(hits) == 2 for hits in found)
