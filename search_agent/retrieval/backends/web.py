"""Web search as the back end: the snippets of a provider's results are the passages.

    export SLEUTH_SEARCH_KEY=...
    bash retrieval_launch.sh backend.plugin=search_agent.retrieval.backends.web backend.provider=serper

The web changes: record a run that is to be repeated (``cache=record``). A result without a snippet says nothing, and
is no passage. Another provider is one more row of ``PROVIDERS``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

import orjson

from search_agent.retrieval.backends.backend import Backend, Hit, cut
from search_agent.retrieval.backends.http import Http, passage_hit, secret
from search_agent.retrieval.index.documents import Documents
from verl.config.build import to_dict
from verl.errors import InfrastructureError, UserError, at_least

MAX_TITLE_CHARS = 300
MAX_WORDS, MAX_QUERY_CHARS = 50, 400
"""Of a query: Brave refuses more, Google reads 32 words."""
_tag = re.compile(r"<[^<>]{0,200}>")


@dataclass(frozen=True)
class Provider:
    """How a provider is asked, and where its reply has the results."""

    url: str
    method: Literal["GET", "POST"]
    query: str
    """Parameter that holds the query; parameters travel in the address (GET) or as JSON (POST)."""
    count: str | None
    """Parameter for the number of results, None where there is none."""
    max_count: int
    results: tuple[str, ...]
    """Keys that lead to the list of results."""
    text: str
    """Key of a result's snippet."""
    link: str = "link"
    title: str = "title"
    key_header: str | None = None
    """Header that holds the key; where both this and ``key_parameter`` are None, no key is needed."""
    key_parameter: str | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)


PROVIDERS = {
    "serper": Provider(
        "https://google.serper.dev/search", "POST", "q", "num", 100, ("organic",), "snippet", key_header="X-API-KEY"
    ),
    "serpapi": Provider(
        "https://serpapi.com/search.json",
        "GET",
        "q",
        "num",
        100,
        ("organic_results",),
        "snippet",
        key_parameter="api_key",
        fixed={"engine": "google"},
    ),
    "google": Provider(
        "https://www.googleapis.com/customsearch/v1", "GET", "q", "num", 10, ("items",), "snippet", key_parameter="key"
    ),
    "brave": Provider(
        "https://api.search.brave.com/res/v1/web/search",
        "GET",
        "q",
        "count",
        20,
        ("web", "results"),
        "description",
        link="url",
        key_header="X-Subscription-Token",
    ),
    "searxng": Provider(
        "http://127.0.0.1:8080/search",
        "GET",
        "q",
        None,
        100,
        ("results",),
        "content",
        link="url",
        fixed={"format": "json"},
    ),
}
"""Written after the providers' documentation; no test asks them."""


@dataclass(frozen=True)
class Config:
    """Who is asked, and how much of a snippet is kept."""

    provider: Literal["serper", "serpapi", "google", "brave", "searxng"]
    """Whose interface is spoken."""
    key_variable: str = "SLEUTH_SEARCH_KEY"
    """Environment variable that holds the provider's key; never an argument, which others on the machine can read."""
    url: str = ""
    """Another address for the provider, such as a SearXNG of your own; the provider's own if empty."""
    parameters: tuple[str, ...] = ()
    """Further parameters as ``name=value``, such as ``gl=us``, or the ``cx=...`` that Google needs."""
    max_chars: int = 2000
    """Characters of a snippet that are kept."""
    timeout_s: float = 10.0
    """Seconds that one attempt may take."""
    retries: int = 3
    """Further attempts after a failed one."""

    def __post_init__(self) -> None:
        if self.url and urlsplit(self.url).scheme not in ("http", "https"):
            raise UserError(f"url: {self.url!r} is no address; write https://HOST/PATH")
        if wrong := [word for word in self.parameters if "=" not in word]:
            raise UserError(f"parameters: {wrong[0]!r} is not name=value")
        at_least(self, 1, "max_chars")


def build(config: Config, documents: Documents) -> WebSearch:
    """Raises UserError if the key is missing. Asks nothing: a search may cost money."""
    return WebSearch(config)


class WebSearch(Backend):
    """Scores are 1 / rank, as providers give none."""

    max_batch = 1  # providers take one query a request; search threads ask side by side

    def __init__(self, config: Config) -> None:
        self._config = config
        self._provider = provider = PROVIDERS[config.provider]
        needs_key = provider.key_header is not None or provider.key_parameter is not None
        self._key = secret(config.key_variable, "key_variable") if needs_key else None
        self._http = Http(config.timeout_s, config.retries)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Hit]:
        method, url, headers, body = web_request(self._provider, self._config, self._key, query, k)
        status, reply = self._http.json(method, url, headers, body)
        if status != 200:
            raise InfrastructureError(f"{self._config.provider} answers {status}")  # a reply may repeat the key
        rows = snippets(self._provider, reply, self._config.max_chars)[:k]
        return [passage_hit(place, 1 / (place + 1), row) for place, row in enumerate(rows)]

    def manifest(self) -> dict[str, Any]:
        asked = {name: to_dict(getattr(self._config, name)) for name in ("provider", "url", "parameters", "max_chars")}
        return {"name": "web", **asked}

    def implementation(self) -> str:
        return self._config.provider


def web_request(
    provider: Provider, config: Config, key: str | None, query: str, k: int
) -> tuple[str, str, dict[str, str], bytes | None]:
    """Method, address, headers and body that ask for k results."""
    parameters: dict[str, Any] = {**provider.fixed, **dict(word.split("=", 1) for word in config.parameters)}
    parameters[provider.query] = cut(query, MAX_WORDS)[:MAX_QUERY_CHARS]
    if provider.count is not None:
        parameters[provider.count] = min(k, provider.max_count)
    if key is not None and provider.key_parameter is not None:
        parameters[provider.key_parameter] = key
    headers = {"Accept": "application/json"}
    if key is not None and provider.key_header is not None:
        headers[provider.key_header] = key
    url = config.url or provider.url
    if provider.method == "GET":
        return "GET", f"{url}?{urlencode(parameters)}", headers, None
    return "POST", url, {**headers, "Content-Type": "application/json"}, orjson.dumps(parameters)


def snippets(provider: Provider, reply: Any, max_chars: int) -> list[dict[str, str]]:
    """``{"id", "title", "text"}`` of each result, best first. Raises InfrastructureError if it is no such reply."""
    for name in provider.results:
        if not isinstance(reply, dict):
            raise InfrastructureError(f"the provider's reply has no {'.'.join(provider.results)}")
        reply = reply.get(name, [])  # providers leave the key out where nothing was found
    if not isinstance(reply, list) or not all(isinstance(row, dict) for row in reply):
        raise InfrastructureError(f"{'.'.join(provider.results)} of the provider's reply is no list of results")
    rows = []
    for row in reply:
        text, link = plain(row.get(provider.text), max_chars), row.get(provider.link)
        if text and isinstance(link, str) and link:
            rows.append({"id": link, "title": plain(row.get(provider.title), MAX_TITLE_CHARS), "text": text})
    return rows


def plain(text: Any, max_chars: int) -> str:
    """A snippet without tags, entities and line breaks, at most so long; empty for what is no text."""
    if not isinstance(text, str):
        return ""
    return " ".join(html.unescape(_tag.sub("", text[: 20 * max_chars])).split())[:max_chars]
