"""The retrieval servers of a run: started with it or run by others, and watched while it works.

Invariant: work that searches on servers of ours ends, with an error, soon after one of them has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from search_agent.config import RunConfig
from search_agent.retrieval.server.child import RunningServer, start_server
from verl.errors import InfrastructureError

T = TypeVar("T")

WATCH_S = 1.0
"""How often servers are looked at."""


@dataclass(frozen=True)
class Retrievers:
    """Where each split is searched."""

    urls: Mapping[str, list[str]]
    """Addresses by split."""
    logs: Mapping[Path, RunningServer]
    """The servers that were started for this run, by their logs; none where the retriever is a URL."""

    def check(self) -> None:
        """Raises InfrastructureError that names the log of a server that has ended."""
        for log, server in self.logs.items():
            status = server.process.poll()
            if status is not None:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                raise InfrastructureError(
                    f"the retrieval server at {server.url} {how} (log: {log}); the same command starts it and goes on"
                )


async def start_retrievers(
    config: RunConfig,
    splits: Mapping[str, Path | None],
    logs: Path,
    stack: ExitStack,
    options: Sequence[str] = (),
) -> Retrievers:
    """With ``retriever=embedded``, servers started now, one a corpus, that end with ``stack``; else the given ones.

    ``options`` are further arguments of our servers, ``Source.server``.
    """
    if config.retriever != "embedded":
        return Retrievers({split: list(config.retriever_urls) for split in splits}, {})
    corpora = sorted({corpus for corpus in splits.values() if corpus is not None})
    paths = [logs / f"retriever_{number}.log" for number in range(len(corpora))]
    start = partial(start_server, options=options)
    servers = await asyncio.gather(
        *(asyncio.to_thread(start, corpus, log=log) for corpus, log in zip(corpora, paths, strict=True))
    )
    for server in servers:
        stack.enter_context(server)
    url_of = {corpus: server.url for corpus, server in zip(corpora, servers, strict=True)}
    urls_of = {split: [url_of[corpus]] for split, corpus in splits.items() if corpus is not None}
    return Retrievers(urls_of, dict(zip(paths, servers, strict=True)))


async def while_serving(retrievers: Retrievers, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Raises InfrastructureError instead if a server of ours ends before it does."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=WATCH_S)
            retrievers.check()  # before the work's own error: that one is a consequence
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
