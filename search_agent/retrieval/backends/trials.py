"""ClinicalTrials.gov, version 2 (https://clinicaltrials.gov/data-api/api): numbers of trials in its own order.

    bash retrieval_launch.sh backend.plugin=search_agent.retrieval.backends.trials max_k=10000

The registry changes daily: record a run that is to be repeated (``client.cache=record``). With ``url=standin`` and a
corpus, a local server with the same wire format is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import orjson

from search_agent.retrieval.backends.backend import Backend, Hit
from search_agent.retrieval.backends.paced import Paced, PacedConfig, hits_of
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.types import QueryRefused
from verl.errors import InfrastructureError

PAGE = 1000


@dataclass(frozen=True)
class Config(PacedConfig):
    """Where the registry is, and how it is asked."""

    url: str = "https://clinicaltrials.gov"
    """Its address; ``standin`` is a local server over the corpus."""
    requests_per_second: float = 0.8
    """Over all threads of this server; about 50 a minute are let through for an address."""


def build(config: Config, documents: Documents) -> Trials:
    """Asks nothing."""
    return Trials("trials", "trials", config, documents)


class Trials(Paced, Backend):
    """The registry, or its stand-in."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [hits_of(self._ids(query, k)) for query in queries]

    def implementation(self) -> str:
        return "v2"

    def _ids(self, query: str, k: int) -> list[str]:
        """Page after page until there are ``k``, or no more."""
        found: dict[str, None] = {}
        token: str | None = None
        while len(found) < k:
            parameters = {"query.term": query, "pageSize": str(min(PAGE, k - len(found))), "fields": "NCTId"}
            if token is not None:
                parameters["pageToken"] = token
            self._pace.wait()
            reply = self._http.reply("GET", f"{self._url}/api/v2/studies?{urlencode(parameters)}")
            page, token = studies_page(reply.status, reply.raw)
            before = len(found)
            found |= dict.fromkeys(page)
            if token is None or len(found) == before:  # a page that brings nothing new would come for ever
                break
        return list(found)[:k]


def studies_page(status: int, raw: bytes) -> tuple[list[str], str | None]:
    """Numbers and the next page's token. Raises QueryRefused for what the registry calls the query's fault."""
    if status in (400, 414):
        raise QueryRefused(" ".join(raw[:200].decode("utf-8", "replace").split()) or "the registry refused it")
    try:
        reply = orjson.loads(raw)
        numbers = [study["protocolSection"]["identificationModule"]["nctId"] for study in reply["studies"]]
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise InfrastructureError(f"ClinicalTrials.gov answers {status} without studies") from error
    token = reply.get("nextPageToken")
    if status != 200 or not all(isinstance(one, str) for one in [*numbers, "" if token is None else token]):
        raise InfrastructureError(f"ClinicalTrials.gov answers {status} with studies of another form")
    return numbers, token
