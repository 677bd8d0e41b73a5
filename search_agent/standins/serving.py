"""A stand-in over a corpus, in a thread of the process that asks it, on a free port of loopback."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Literal

from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.types import split_contents
from search_agent.standins.boolean import Library, Record
from verl.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

STANDIN = "standin"
"""What is written in place of a service's address."""
Service = Literal["eutils", "trials"]


def records(documents: Documents) -> list[Record]:
    """The passages of a corpus, without dates."""
    rows = (documents.parsed(number) for number in range(len(documents)))
    return [Record(row["id"], *split_contents(row["contents"])) for row in rows]


def standin_url(service: Service, documents: Documents) -> str:
    """Start a service over the passages; it ends with the process. Raises UserError if there are none."""
    if not len(documents):
        raise UserError(f"backend.url={STANDIN} searches a corpus: write corpus=FILE, or the service's address")
    from search_agent.standins import eutils, trials

    build = {"eutils": eutils, "trials": trials}[service].build
    return serve(build(Library(records(documents))))


def serve(app: FastAPI) -> str:
    """Answer requests in a thread; returns the address."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="standin", daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
