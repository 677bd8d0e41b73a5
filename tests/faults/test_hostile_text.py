"""Nothing that a policy writes aborts an episode, breaks a server, or earns what it does not say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.faults.hostile import GOLDS, PIECES, Arm, Policy, Tally, arms, make_agent, play, play_texts, server_faults
from bench.faults.hostile_site import byte_tokenizer, servers
from verl.data.tasks import Task
from verl.trajectory import FinishReason

Urls = Mapping[str, Sequence[str]]
ENDED: tuple[FinishReason, ...] = ("stop", "length", "end_of_turn")
anything = st.text(st.characters(codec=None), max_size=60)
forged = st.lists(st.sampled_from(PIECES) | anything, max_size=12).map("".join)
blocks = st.tuples(st.sampled_from(["think", "search", "answer", "open", "refine"]), forged | anything)
turns = forged | st.lists(blocks.map(lambda block: f"<{block[0]}>{block[1]}</{block[0]}>"), max_size=3).map("".join)

tokenizer = cache(byte_tokenizer)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Urls]:
    with servers(tmp_path_factory.mktemp("hostile")) as running:
        yield running


async def played(arm: Arm, urls: Urls, split: str, gold: tuple[str, ...], said: list[tuple[str, Any]]) -> Tally:
    tally, agent = Tally(), make_agent(arm, urls, tokenizer())
    policy = Policy(chain(said, repeat(("", "end_of_turn"))))
    await agent.open()
    await play(agent, arm, Task("t", "who wrote it?", gold), split, policy, tally)
    await agent.close()
    return tally


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(arms()),
    st.sampled_from(["bm25", "reranked"]),
    st.sampled_from(GOLDS) | st.tuples(anything.filter(str.strip)),
    st.lists(st.tuples(turns, st.sampled_from(ENDED)), min_size=1, max_size=5),
)
def test_no_text_aborts_or_earns_what_it_does_not_say(
    urls: Urls, arm: Arm, split: str, gold: tuple[str, ...], said: list[tuple[str, Any]]
) -> None:
    tally = asyncio.run(played(arm, urls, split, gold, said))
    assert (tally.aborted, tally.unearned) == ([], [])


def test_drawn_texts_reach_the_servers_and_break_nothing(urls: Urls) -> None:
    tally = asyncio.run(play_texts(2_000, urls, tokenizer()))
    assert (tally.aborted, tally.unearned) == ([], [])
    assert tally.found > 100
    assert tally.paid > 5
    assert asyncio.run(server_faults([url for each in urls.values() for url in each]))[1] == 0
