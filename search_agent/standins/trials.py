"""ClinicalTrials.gov's version 2 over a small library: ``/api/v2/studies``, JSON only.

Kept from the original: ``query.term``, ``pageSize`` of 1,000 at most, an opaque ``pageToken`` that the last page lacks,
``fields``, ``countTotal``, and 400 with plain text for a query that cannot be read.
(https://clinicaltrials.gov/data-api/api)
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from search_agent.standins.boolean import BadQuery, Library, Record

MAX_PAGE = 1000


def build(library: Library) -> FastAPI:
    """The application."""
    app = FastAPI(title="ClinicalTrials.gov stand-in", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/api/v2/studies")
    async def studies(request: Request) -> Response:
        given = request.query_params
        try:
            size = min(int(given.get("pageSize", "10")), MAX_PAGE)
            start = int(base64.urlsafe_b64decode(given["pageToken"])) if "pageToken" in given else 0
            if size < 0 or start < 0 or len(set(given)) < len(given.multi_items()):
                raise BadQuery("a parameter is out of range, or given twice")
            found = library.search(given.get("query.term", ""), strict=True)
        except (ValueError, binascii.Error) as error:
            return PlainTextResponse(f"{error}", 400)
        brief = given.get("fields", "").lower() in ("nctid", "protocolsection.identificationmodule.nctid")
        page: dict[str, Any] = {"studies": [study(record, brief) for record in found[start : start + size]]}
        if start + size < len(found):
            page["nextPageToken"] = base64.urlsafe_b64encode(str(start + size).encode()).decode()
        if given.get("countTotal") == "true":
            page["totalCount"] = len(found)
        return Response(orjson.dumps(page), media_type="application/json")

    return app


def study(record: Record, brief: bool) -> dict[str, Any]:
    """A study as the service renders it; ``brief`` is its number alone."""
    identification: dict[str, str] = {"nctId": record.id}
    if brief:
        return {"protocolSection": {"identificationModule": identification}}
    identification["briefTitle"] = record.title
    return {
        "protocolSection": {
            "identificationModule": identification,
            "descriptionModule": {"briefSummary": record.abstract},
        }
    }
