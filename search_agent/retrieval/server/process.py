"""``python -m search_agent.retrieval.server corpus=FILE port=N``: one server process.

It listens first and loads then, so that ``/health`` and ``/ready`` tell the two apart. SIGTERM and SIGINT drain it: no
new connection, the requests under way are answered, exit status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import FrameType

import orjson
import uvicorn
import uvloop

from search_agent.retrieval.config import ServerConfig
from search_agent.retrieval.server import access
from search_agent.retrieval.server.app import App
from search_agent.retrieval.server.loading import Served, load
from search_agent.retrieval.server.wire import Bounds
from verl.config.arguments import parse
from verl.config.build import Plugin
from verl.durable import write_atomically
from verl.errors import UserError

DRAIN_S = 30
KEEP_ALIVE_S = 75
"""After which an idle connection is closed: later than clients let go of theirs, since a request that is on its way
while its connection closes is lost to clients that do not try again."""
THREADS_THAT_WAIT = 8
"""Of a back end elsewhere."""


class _Server(uvicorn.Server):
    """Tells the application as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.draining = True
        super().handle_exit(sig, frame)


def main(arguments: Sequence[str]) -> int:
    """Serve until stopped. Raises UserError on a bad argument, a bad corpus or a port in use."""
    config = parse(ServerConfig, arguments)
    access.check_host(config.host)
    listener = _listen(config.host, config.port)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has drained
        signal.signal(number, _leave)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, listener))
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """Told to stop and nothing is under way: that is no error."""
    raise SystemExit(0)


async def _serve(config: ServerConfig, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    bounds = Bounds(config.topk, config.max_k, config.max_queries)
    hosts = access.known_hosts(config.host, config.hosts)
    app = App(bounds, config.threads or _default_threads(config), hosts)
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        ),
        app,
    )
    if config.stop_with_stdin:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _on_stdin, server)
    readiness = asyncio.create_task(_become_ready(config, url, app, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        app.close()
    readiness.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await readiness


def _default_threads(config: ServerConfig) -> int:
    """A core each for BM25; a model has threads of its own, and larger batches if one thread asks it."""
    if isinstance(config.backend, Plugin) and config.rerank is None:
        return THREADS_THAT_WAIT
    has_model = config.dense is not None or config.rerank is not None
    return 1 if has_model else len(os.sched_getaffinity(0))


async def _become_ready(config: ServerConfig, url: str, app: App, server: _Server) -> None:
    try:
        served = await _load_in_thread(config)
        # What was loaded stays: walking through it again and again held every request up for 80 ms at a time.
        gc.collect()
        gc.freeze()
        app.start(served)
        if config.announce is not None:
            write_atomically(config.announce, orjson.dumps({"url": url, "pid": os.getpid()}))
    except Exception:
        server.should_exit = True
        raise
    name = served.manifest["backend"]["name"]
    what = f"{len(served.documents):,} passages of {config.corpus} ({name})" if config.corpus else name
    print(f"retrieval: {what}, ready at {url}", flush=True)


def _load_in_thread(config: ServerConfig) -> asyncio.Future[Served]:
    """Load in a daemon thread, so that a server told to stop while it loads need not finish first."""
    future: Future[Served] = Future()
    future.set_running_or_notify_cancel()  # whoever waits may give up, which leaves the thread alone

    def work() -> None:
        try:
            future.set_result(load(config))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, name="load", daemon=True).start()
    return asyncio.wrap_future(future)


def _on_stdin(server: _Server) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        server.handle_exit(signal.SIGTERM, None)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError with the reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} on {host} is in use; stop what listens there or give port=N") from error
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror}; give host= and port=") from error
    return listener
