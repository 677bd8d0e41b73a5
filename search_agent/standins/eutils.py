"""PubMed's E-utilities over a small library: ``esearch.fcgi`` and ``esummary.fcgi``, JSON only.

Kept from the original: ``count``, ``retmax`` and ``retstart`` are strings; GET and POST are alike; no more than 9,999
ids can be reached; what is asked too often is refused with 429; an address of more than 4,000 characters with 414.
(https://www.ncbi.nlm.nih.gov/books/NBK25499)
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from search_agent.standins.boolean import BadQuery, Library

MAX_URL_CHARS = 4000
MAX_BODY_BYTES = 2**20
REACHABLE = 9999
_ROOT = "/entrez/eutils"


def build(library: Library) -> FastAPI:
    """The application."""
    app = FastAPI(title="E-utilities stand-in", docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route(f"{_ROOT}/{{utility}}.fcgi", methods=["GET", "POST"])
    async def utility(utility: str, request: Request) -> Response:
        if len(str(request.url)) > MAX_URL_CHARS:
            return PlainTextResponse("Request-URI Too Long", 414)
        raw = request.url.query.encode()
        if request.method == "POST":
            body = await request.body()
            if len(body) > MAX_BODY_BYTES:
                return PlainTextResponse("Request Entity Too Large", 413)
            raw += b"&" + body
        given = parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True)
        parameters = dict(given)
        if len(parameters) < len(given):
            return PlainTextResponse("a parameter is given twice", 400)
        if parameters.get("retmode") != "json":
            return Response("<eSearchResult/>", media_type="text/xml")
        if utility not in ("esearch", "esummary") or parameters.get("db") != "pubmed":
            return PlainTextResponse("unknown utility or database", 400)
        answer = esearch(library, parameters) if utility == "esearch" else esummary(library, parameters)
        return Response(orjson.dumps(answer), media_type="application/json")

    return app


def esearch(library: Library, parameters: Mapping[str, str]) -> dict[str, object]:
    """What a search answers: a slice of the ids, and how many there are."""
    try:
        start, size = int(parameters.get("retstart") or 0), int(parameters.get("retmax") or 20)
        if not parameters.get("term", "").strip():
            raise BadQuery("Empty term and query_key - nothing todo")
        if start < 0 or size < 0 or start > REACHABLE:
            raise BadQuery("Exception: 'retstart' cannot be larger than 9998")
        dated = parameters.get("datetype") == "pdat"
        found = library.search(
            parameters["term"],
            earliest=parameters.get("mindate", "") if dated else "",
            latest=parameters.get("maxdate", "9999") if dated else "9999",
        )
    except ValueError as error:
        return {"header": {"type": "esearch", "version": "0.3"}, "esearchresult": {"ERROR": str(error)}}
    ids = [record.id for record in found[:REACHABLE]]
    return {
        "header": {"type": "esearch", "version": "0.3"},
        "esearchresult": {
            "count": str(len(found)),
            "retmax": str(len(ids[start : start + size])),
            "retstart": str(start),
            "idlist": ids[start : start + size],
            "translationset": [],
            "querytranslation": parameters["term"],
        },
    }


def esummary(library: Library, parameters: Mapping[str, str]) -> dict[str, object]:
    """What is known of some ids; those that are not there are left out."""
    wanted = [one.strip() for one in parameters.get("id", "").split(",")][:200]
    records = [library.by_id[one] for one in wanted if one in library.by_id]
    entries = {record.id: {"uid": record.id, "title": record.title, "pubdate": record.date} for record in records}
    return {"header": {"type": "esummary", "version": "0.3"}, "result": {"uids": list(entries), **entries}}
