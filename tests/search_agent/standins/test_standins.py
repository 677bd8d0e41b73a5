"""The stand-ins' replies are those of the services."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from search_agent.standins import eutils, trials
from search_agent.standins.boolean import Library, Record
from tests.search_agent.standins.faults import Faults

LIBRARY = Library([Record(f"{n}", f"Trial {n}", "stroke", date=f"20{n:02d}/01/01") for n in range(30)])
SEARCH = "/entrez/eutils/esearch.fcgi"
BASE = {"db": "pubmed", "retmode": "json", "datetype": "pdat", "mindate": "1970/01/01"}


def pubmed() -> TestClient:
    return TestClient(eutils.build(LIBRARY))


def esearch(client: TestClient, **parameters: str) -> dict[str, Any]:
    result: dict[str, Any] = client.get(SEARCH, params={**BASE, **parameters}).json()["esearchresult"]
    return result


def test_esearch_counts_and_pages_with_numbers_as_strings() -> None:
    client = pubmed()
    assert esearch(client, term="stroke", maxdate="2009/12/31", retmax="0")["count"] == "10"
    page = esearch(client, term="stroke", maxdate="2009/12/31", retmax="4", retstart="8")
    assert page["idlist"] == ["1", "0"]
    assert (page["retmax"], page["retstart"]) == ("2", "8")
    assert len(esearch(client, term="stroke")["idlist"]) == 20, "20 where retmax is not given"


def test_esearch_says_what_is_wrong_inside_its_reply() -> None:
    client = pubmed()
    assert "Empty term" in esearch(client, term=" ")["ERROR"]
    assert "retstart" in esearch(client, term="a", retstart="10000")["ERROR"]


def test_a_parameter_that_a_query_smuggled_in_is_refused() -> None:
    reply = pubmed().get(f"{SEARCH}?db=pubmed&retmode=json&retmax=1&term=stroke&retmax=9000")
    assert reply.status_code == 400


def test_a_long_address_is_refused_and_the_same_by_post_is_answered() -> None:
    client, term = pubmed(), "stroke OR " * 500 + "asthma"
    assert client.get(SEARCH, params={**BASE, "term": term}).status_code == 414
    assert "more than 256 terms" in client.post(SEARCH, data={**BASE, "term": term}).json()["esearchresult"]["ERROR"]


def test_summaries_and_other_modes() -> None:
    client = pubmed()
    reply = client.get("/entrez/eutils/esummary.fcgi", params={**BASE, "id": "3,99"}).json()
    assert reply["result"]["uids"] == ["3"]
    assert reply["result"]["3"]["pubdate"] == "2003/01/01"
    assert client.get(SEARCH, params={"db": "pubmed", "term": "a"}).text.startswith("<")


def test_studies_are_paged_by_a_token_that_the_last_page_lacks() -> None:
    client = TestClient(trials.build(LIBRARY))
    seen: list[str] = []
    parameters = {"query.term": "stroke", "pageSize": "12", "fields": "NCTId"}
    while True:
        page = client.get("/api/v2/studies", params=parameters).json()
        seen += [study["protocolSection"]["identificationModule"]["nctId"] for study in page["studies"]]
        if "nextPageToken" not in page:
            break
        parameters["pageToken"] = page["nextPageToken"]
    assert seen == [str(n) for n in reversed(range(30))]
    assert client.get("/api/v2/studies", params={"query.term": "(a"}).status_code == 400
    assert client.get("/api/v2/studies", params={"query.term": "a", "pageToken": "!"}).status_code == 400


def test_faults_happen_as_often_as_asked() -> None:
    faults = Faults(errors=1, truncated=1, requests_per_second=2)
    client = TestClient(faults.around(eutils.build(LIBRARY)))
    assert client.get(SEARCH, params={**BASE, "term": "a"}).status_code == 500
    assert not client.get(SEARCH, params={**BASE, "term": "a"}).text.endswith("}")
    assert client.get(SEARCH, params={**BASE, "term": "a"}).json()["header"]["type"] == "esearch"
    busy = client.get(SEARCH, params={**BASE, "term": "a"})
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
    assert len(faults.log) == 4
