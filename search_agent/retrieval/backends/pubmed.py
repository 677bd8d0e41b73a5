"""PubMed through its E-utilities (https://www.ncbi.nlm.nih.gov/books/NBK25499): ids of articles, the newest first.

    bash retrieval_launch.sh backend.plugin=search_agent.retrieval.backends.pubmed max_k=10000

A request may bound the day of publication: ``options={"date.to": "2015/06/30"}``. PubMed changes daily: record a run
that is to be repeated (``client.cache=record``). With ``url=standin`` and a corpus, a local server with the same wire
format is asked, over the corpus's passages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from search_agent.retrieval.backends.backend import Hit, Selective
from search_agent.retrieval.backends.http import secret
from search_agent.retrieval.backends.paced import Paced, PacedConfig, hits_of
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.types import QueryRefused
from verl.errors import InfrastructureError

REACHABLE = 9999
"""Results of one query that PubMed gives out."""
PAGE = 5000
_DAY = re.compile(r"\d{4}(/\d{2}){0,2}")
_PATH = "/entrez/eutils/esearch.fcgi"


@dataclass(frozen=True)
class Config(PacedConfig):
    """Where PubMed is, and how it is asked."""

    url: str = "https://eutils.ncbi.nlm.nih.gov"
    """Its address; ``standin`` is a local server over the corpus."""
    requests_per_second: float = 3.0
    """Over all threads of this server. 3 is allowed without a key, 10 with one, and unlimited with a stand-in."""
    key_variable: str = ""
    """Environment variable that holds an API key; empty asks without one."""


def build(config: Config, documents: Documents) -> PubMed:
    """Raises UserError if a key is named and not set. Asks nothing."""
    return PubMed(config, documents)


class PubMed(Paced, Selective):
    """PubMed, or its stand-in."""

    def __init__(self, config: Config, documents: Documents) -> None:
        self._key = secret(config.key_variable, "key_variable")
        super().__init__("pubmed", "eutils", config, documents)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return self.search_selected(queries, k, {})

    def search_selected(self, queries: Sequence[str], k: int, options: Mapping[str, Any]) -> list[list[Hit]]:
        return [hits_of(self._ids(query, k, options)) for query in queries]

    def check(self, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            if name not in ("date.from", "date.to") or not isinstance(value, str) or not _DAY.fullmatch(value):
                raise ValueError(f"options: {name}={value!r}: PubMed takes date.from and date.to, as YYYY/MM/DD")

    def count(self, options: Mapping[str, Any]) -> int:
        """PubMed does not say without a query."""
        raise ValueError("options: PubMed does not count without a query")

    def implementation(self) -> str:
        return "E-utilities"

    def _ids(self, query: str, k: int, options: Mapping[str, Any]) -> list[str]:
        """Page after page until there are ``k``, or no more."""
        wanted = min(k, REACHABLE)
        ids: list[str] = []
        while len(ids) < wanted:
            size = min(PAGE, wanted - len(ids))
            count, page = self._page(query, options, size, len(ids))
            ids += page[:size]
            if not page or len(ids) >= count:
                break
        return list(dict.fromkeys(ids))

    def _page(self, query: str, options: Mapping[str, Any], size: int, start: int) -> tuple[int, list[str]]:
        """How many there are in all, and one page of ids."""
        parameters = {"db": "pubmed", "retmode": "json", "term": query, "retmax": str(size), "retstart": str(start)}
        if options:
            earliest, latest = options.get("date.from", "1500"), options.get("date.to", "3000")
            parameters |= {"datetype": "pdat", "mindate": earliest, "maxdate": latest}
        if self._key is not None:
            parameters["api_key"] = self._key
        self._pace.wait()
        # In the body: a query is escaped, so it cannot add parameters, and may be longer than an address.
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, reply = self._http.json("POST", self._url + _PATH, headers, urlencode(parameters).encode())
        return esearch_page(status, reply)


def esearch_page(status: int, reply: Any) -> tuple[int, list[str]]:
    """Count and ids of a reply. Raises QueryRefused where PubMed names the query's fault, else InfrastructureError."""
    result = reply.get("esearchresult") if isinstance(reply, dict) else None
    if status != 200 or not isinstance(result, dict):
        raise InfrastructureError(f"PubMed answers {status} without a result")
    if "ERROR" in result:
        raise QueryRefused(str(result["ERROR"])[:200])
    count, ids = result.get("count"), result.get("idlist")
    if not (isinstance(count, str) and count.isascii() and count.isdigit() and isinstance(ids, list)):
        raise InfrastructureError("PubMed's result has no count, or no list of ids")
    if not all(isinstance(one, str) for one in ids):
        raise InfrastructureError("PubMed's list of ids holds something else")
    return int(count), ids
