"""Boolean queries, as PubMed reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.standins.boolean import BadQuery, Library, Record

LIBRARY = Library(
    [
        Record("1", "Aspirin and stroke", "A trial of aspirin in adults.", "Stroke; Aspirin", "2001/05/01"),
        Record("2", "Statins", "Cholesterol and stroke in children.", "Statins", "2010/01/01"),
        Record("3", "Warfarin", "Bleeding in adults with stroke.", "Warfarin; Stroke", "2005/03/02"),
        Record("4", "Childhood asthma", "Inhaled steroids.", "Asthma", "2020/12/31"),
    ]
)


def found(query: str, **bounds: str) -> list[str]:
    return [record.id for record in LIBRARY.search(query, **bounds)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("stroke", ["2", "3", "1"]),  # the newest first
        ("aspirin stroke", ["1"]),  # side by side is AND
        ("aspirin OR asthma", ["4", "1"]),
        ("asthma OR aspirin AND stroke", ["1"]),  # from left to right: (asthma OR aspirin) AND stroke
        ("asthma OR (aspirin AND stroke)", ["4", "1"]),
        ("stroke NOT aspirin", ["2", "3"]),
        ("stroke NOT (aspirin OR warfarin)", ["2"]),
        ("stroke AND NOT aspirin", ["2", "3"]),
        ("NOT stroke", ["4"]),
        ('"adults with stroke"', ["3"]),
        ('"stroke in adults"', []),
        ("child*", ["4", "2"]),
        ("adult[tiab]", ["3", "1"]),  # stemmed: adults
        ("stroke[ti]", ["1"]),
        ("stroke[mh]", ["3", "1"]),
        ("stroke[nothing]", ["2", "3", "1"]),
        ("and or not", []),  # words where they are not in capitals
        ("(((aspirin)", ["1"]),  # what is open is closed
        ("aspirin) AND stroke", ["1"]),
        ("", []),
        ("AND OR", []),
        ('"', []),
        ('title : "x" NEAR {', []),  # FTS5's own syntax is text
    ],
)
def test_a_query_finds_what_pubmed_would(query: str, ids: list[str]) -> None:
    assert found(query) == ids


def test_dates_bound_what_is_found() -> None:
    assert found("stroke", latest="2005/03/02") == ["3", "1"]
    assert found("stroke", earliest="2005/03/02") == ["2", "3"]


def test_a_strict_reader_refuses_parentheses_that_do_not_balance() -> None:
    for query in ("(aspirin", "aspirin)"):
        with pytest.raises(BadQuery):
            LIBRARY.search(query, strict=True)


def test_what_would_cost_without_bound_is_refused() -> None:
    with pytest.raises(BadQuery, match="256 terms"):
        found("a " * 257)
    with pytest.raises(BadQuery, match="deeper"):
        found("(" * 100 + "a")


@given(st.lists(st.sampled_from(["aspirin", "stroke", "child*", "AND", "OR", "NOT", "(", ")", '"', "[ti]", "é", "]"])))
def test_any_query_finds_records_or_is_refused(words: list[str]) -> None:
    assert set(found(" ".join(words))) <= {"1", "2", "3", "4"}


@given(st.text(max_size=60))
def test_any_text_is_a_query(text: str) -> None:
    assert set(found(text)) <= {"1", "2", "3", "4"}
