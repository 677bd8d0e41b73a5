"""PubMed and ClinicalTrials.gov as back ends, against stand-ins with their wire formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search_agent.retrieval.backends import pubmed, trials
from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.backends.paced import Pace
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.types import QueryRefused
from search_agent.standins import eutils
from search_agent.standins import trials as trials_standin
from search_agent.standins.boolean import Library, Record
from search_agent.standins.serving import serve
from tests.search_agent.standins.faults import Faults
from verl.errors import InfrastructureError, UserError

LIBRARY = Library([Record(f"{n}", f"Study {n}", "stroke and aspirin", date=f"{1900 + n}/01/01") for n in range(120)])
EMPTY = Documents.from_rows(())


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def find_articles(faults: Faults) -> Callable[..., list[str]]:
    url = serve(faults.around(eutils.build(LIBRARY)))
    backend = pubmed.build(pubmed.Config(url=url, requests_per_second=1000, timeout_s=5, retries=2), EMPTY)
    return lambda query, k, **options: ids(backend.search_selected([query], k, options)[0])


@pytest.fixture
def find_trials(faults: Faults) -> Callable[..., list[str]]:
    url = serve(faults.around(trials_standin.build(LIBRARY)))
    backend = trials.build(trials.Config(url=url, requests_per_second=1000, timeout_s=5, retries=2), EMPTY)
    return lambda query, k: ids(backend.search([query], k)[0])


def ids(hits: list[Hit]) -> list[str]:
    return [orjson.loads(hit.passage or b"{}")["id"] for hit in hits]


def test_articles_come_newest_first_up_to_k_and_before_a_day(find_articles: Callable[..., list[str]]) -> None:
    assert find_articles("stroke", 3) == ["119", "118", "117"]
    assert find_articles("stroke", 3, **{"date.to": "1950/06/30"}) == ["50", "49", "48"]
    assert find_articles("study NOT stroke", 10) == []


def test_pages_are_fetched_until_there_is_no_more(
    find_articles: Callable[..., list[str]], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubmed, "PAGE", 50)
    assert find_articles("aspirin", 3000) == [str(n) for n in reversed(range(120))]
    assert [entry.partition("retstart', ")[2][:4] for entry in faults.log] == ["'0')", "'50'", "'100"]


@pytest.mark.parametrize("query", ["a&retmax=9000&maxdate=1800", "stroke#x", "100% aspirin+stroke", 'a"b', "étude"])
def test_a_query_is_escaped_so_that_it_adds_no_parameter(
    find_articles: Callable[..., list[str]], find_trials: Callable[..., list[str]], faults: Faults, query: str
) -> None:
    find_articles(query, 5)
    find_trials(query, 5)
    assert all(query in entry for entry in faults.log)
    assert len(faults.log) == 2


def test_a_long_query_is_sent_and_what_pubmed_says_of_it_is_the_querys_fault(
    find_articles: Callable[..., list[str]],
) -> None:
    with pytest.raises(QueryRefused, match="256 terms"):
        find_articles("stroke OR " * 600, 5)


def test_a_failure_that_passes_is_tried_again_and_one_that_lasts_is_an_outage(
    find_articles: Callable[..., list[str]], find_trials: Callable[..., list[str]], faults: Faults
) -> None:
    faults.errors = 1
    assert find_articles("stroke", 1) == ["119"]
    faults.errors = 1
    assert find_trials("stroke", 1) == ["119"]
    for find in (find_articles, find_trials):
        faults.errors = 100
        with pytest.raises(InfrastructureError, match="does not answer"):
            find("stroke", 1)
        faults.errors = 0


def test_half_a_reply_is_an_outage(
    find_articles: Callable[..., list[str]], find_trials: Callable[..., list[str]], faults: Faults
) -> None:
    for find in (find_articles, find_trials):
        faults.truncated = 10
        with pytest.raises(InfrastructureError):
            find("stroke", 5)


def test_trials_are_paged_by_token_and_a_query_that_cannot_be_read_is_refused(
    find_trials: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "PAGE", 50)
    assert find_trials("aspirin", 110) == [str(n) for n in reversed(range(10, 120))]
    with pytest.raises(QueryRefused, match="opening parenthesis"):
        find_trials("(stroke", 5)


def test_only_days_are_options() -> None:
    backend = pubmed.build(pubmed.Config(url="standin"), Documents.from_rows([b'{"id":"1","contents":"a"}']))
    backend.check({"date.to": "2015/06/30", "date.from": "2015"})
    for options in ({"date.to": "2015-06-30"}, {"date": "2015"}, {"date.to": 2015}):
        with pytest.raises(ValueError, match="PubMed takes"):
            backend.check(options)


def test_a_standin_needs_a_corpus_and_a_named_key_must_be_set() -> None:
    with pytest.raises(UserError, match="corpus=FILE"):
        pubmed.build(pubmed.Config(url="standin"), EMPTY)
    with pytest.raises(UserError, match="SLEUTH_NO_SUCH_KEY"):
        pubmed.build(pubmed.Config(key_variable="SLEUTH_NO_SUCH_KEY"), EMPTY)


def test_requests_are_paced_evenly() -> None:
    clock, slept = [100.0], list[float]()
    pace = Pace(4, now=lambda: clock[0], sleep=slept.append)
    for _ in range(3):
        pace.wait()
    assert slept == [0.25, 0.5]
    clock[0] = 200.0
    pace.wait()
    assert slept == [0.25, 0.5]


KEYS = st.sampled_from(["esearchresult", "count", "idlist", "studies", "nextPageToken", "ERROR"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@example({"esearchresult": None, "studies": [], "nextPageToken": []}, 200)
@given(json_values, st.sampled_from([200, 400, 404, 500]))
def test_whatever_a_service_says_is_ids_a_refusal_or_an_outage(reply: Any, status: int) -> None:
    try:
        count, page = pubmed.esearch_page(status, reply)
        assert count >= 0
        assert all(isinstance(one, str) for one in page)
    except (QueryRefused, InfrastructureError):
        pass
    try:
        numbers, token = trials.studies_page(status, orjson.dumps(reply))
        assert all(isinstance(one, str) for one in numbers)
        assert token is None or isinstance(token, str)
    except (QueryRefused, InfrastructureError):
        pass
