"""OpenSearch or Elasticsearch as the back end: a batch of queries is one ``_msearch``.

    bash retrieval_launch.sh backend.plugin=search_agent.retrieval.backends.opensearch \\
        backend.url=https://HOST:9200 backend.index=wiki18 backend.key_variable=OPENSEARCH_AUTHORIZATION

A document of the index holds ``contents``, or ``title`` and ``text``, as the rows of a corpus do; its id is ``_id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from search_agent.retrieval.backends.backend import Backend, Hit, cut
from search_agent.retrieval.backends.http import Http, passage_hit, secret
from search_agent.retrieval.index.documents import Documents
from verl.config.build import to_dict
from verl.errors import InfrastructureError, UserError

SOURCE = ("contents", "title", "text")
MAX_CLAUSES = 1024
"""Terms times fields that a query may have in any version."""


@dataclass(frozen=True)
class Config:
    """Where the index is, and what of it is searched."""

    url: str
    """Address of the cluster, ``https://HOST:9200``."""
    index: str
    """Name of the index, or an alias."""
    fields: tuple[str, ...] = ("contents",)
    """Fields that a query is matched against, by ``multi_match``; ``title^2,text`` weighs titles twice."""
    key_variable: str = ""
    """Environment variable with the whole ``Authorization`` header (``Basic ...``, ``ApiKey ...``); none if empty."""
    timeout_s: float = 10.0
    """Seconds that one attempt may take."""
    retries: int = 3
    """Further attempts after a failed one."""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise UserError(f"url: {self.url!r} is no address; write https://HOST:9200")
        if not self.index or not self.fields:
            raise UserError("index: name an index and at least one field of it")


def build(config: Config, documents: Documents) -> OpenSearch:
    """Raises UserError if the cluster has no such index, InfrastructureError if it does not answer."""
    return OpenSearch(config)


class OpenSearch(Backend):
    """One index of a cluster."""

    max_batch = 32

    def __init__(self, config: Config) -> None:
        self._config = config
        self._http = Http(config.timeout_s, config.retries)
        self._index_url = f"{config.url.rstrip('/')}/{quote(config.index, safe=',*')}"
        authorization = secret(config.key_variable, "key_variable")
        self._headers = {} if authorization is None else {"Authorization": authorization}
        status, reply = self._http.json("GET", f"{self._index_url}/_count", self._headers)
        if status in (401, 403, 404):
            remedy = "check index=" if status == 404 else "check key_variable="
            raise UserError(f"backend: {config.url} answers {status} for index {config.index}; {remedy}")
        self._count = _expect(status, reply, "count")

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Scores and their order are the back end's."""
        headers = {**self._headers, "Content-Type": "application/x-ndjson"}
        body = msearch_body(queries, k, self._config.fields)
        status, reply = self._http.json("POST", f"{self._index_url}/_msearch", headers, body)
        return parse_msearch(_expect(status, reply, "responses"), len(queries))

    def manifest(self) -> dict[str, Any]:
        searched = {name: to_dict(getattr(self._config, name)) for name in ("url", "index", "fields")}
        return {"name": "opensearch", **searched, "documents": self._count}

    def implementation(self) -> str:
        return "_msearch"


def msearch_body(queries: Sequence[str], k: int, fields: Sequence[str]) -> bytes:
    """The lines of an ``_msearch``: an empty header and a query for each."""
    lines = []
    for query in queries:
        match = {"multi_match": {"query": cut(query, MAX_CLAUSES // len(fields)), "fields": list(fields)}}
        lines += [b"{}", orjson.dumps({"size": k, "query": match, "_source": list(SOURCE)})]
    return b"\n".join(lines) + b"\n"


def parse_msearch(responses: Any, num_queries: int) -> list[list[Hit]]:
    """The hits of each response. Raises InfrastructureError if one failed or is no such response."""
    if not isinstance(responses, list) or len(responses) != num_queries:
        raise InfrastructureError(f"_msearch did not answer {num_queries} queries: {str(responses)[:200]}")
    found = []
    for response in responses:
        if not isinstance(response, dict) or "error" in response:
            raise InfrastructureError(f"_msearch failed on a query: {str(response)[:200]}")
        try:
            rows = [({"id": hit["_id"], **hit["_source"]}, float(hit["_score"])) for hit in response["hits"]["hits"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InfrastructureError(f"not an _msearch response ({error!r}): {str(response)[:200]}") from error
        found.append([passage_hit(place, score, row) for place, (row, score) in enumerate(rows)])
    return found


def _expect(status: int, reply: Any, key: str) -> Any:
    if status != 200 or not isinstance(reply, dict) or key not in reply:
        raise InfrastructureError(f"the back end answers {status}: {str(reply)[:200]}")
    return reply[key]
