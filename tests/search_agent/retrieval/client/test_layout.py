"""Shards merge to exactly what one server says; servers that contradict each other are refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.retrieval.client.layout import arrange, merge
from search_agent.retrieval.types import Document
from verl.errors import InfrastructureError, UserError


def info(shard: int, shards: int, fingerprint: str = "f") -> dict[str, object]:
    return {"shard": shard, "shards": shards, "fingerprint": fingerprint}


def test_replicas_of_each_shard_are_grouped() -> None:
    layout = arrange({"a": info(1, 2), "b": info(0, 2), "c": info(1, 2)})
    assert layout.shards == (("b",), ("a", "c"))
    assert layout.fingerprint == "f"


def test_addresses_out_of_reach_count_as_replicas_of_a_whole_corpus() -> None:
    assert arrange({"a": info(0, 1)}, ["dead"]).shards == (("a", "dead"),)
    assert arrange({"a": None}, ["dead"]).shards == (("a", "dead"),)


def test_a_shard_without_an_address_is_an_outage() -> None:
    with pytest.raises(InfrastructureError, match=r"no address serves shard \[1\] of 2"):
        arrange({"a": info(0, 2)}, ["dead"])


@pytest.mark.parametrize("other", [info(0, 1, "g"), info(0, 2), None])
def test_servers_that_differ_are_refused(other: dict[str, object] | None) -> None:
    with pytest.raises(UserError, match="do not serve the same"):
        arrange({"a": info(0, 1), "b": other})


@given(st.lists(st.integers(0, 4), max_size=20), st.integers(1, 5), st.integers(1, 6))
def test_merged_shards_equal_the_whole(scores: list[int], shards: int, k: int) -> None:
    def best(documents: list[Document]) -> tuple[Document, ...]:
        return tuple(sorted(documents, key=lambda doc: -doc.score)[:k])

    documents = [Document(str(number), "", "", float(score)) for number, score in enumerate(scores)]
    cuts = [len(documents) * number // shards for number in range(shards + 1)]
    parts = [best(documents[low:high]) for low, high in pairwise(cuts)]
    assert merge(parts, k) == best(documents)
