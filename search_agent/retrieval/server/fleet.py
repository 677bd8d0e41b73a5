"""``python -m search_agent.retrieval.server.fleet corpus=FILE replicas=N shards=M``: several servers of one corpus.

They are plain server processes, on this machine or, with ``place=ray``, wherever Ray puts them on its nodes (which must
see the corpus and index at the same paths). The client gets all addresses and learns from each what it serves. Keys of
a server (``backend=dense``, ``topk=5``) go to all of them.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from search_agent.retrieval.config import ServerConfig
from search_agent.retrieval.server import access
from search_agent.retrieval.server.child import RunningServer, Stopped, start_server
from verl.config.arguments import parse, run
from verl.errors import InfrastructureError, UserError, at_least

LOOK_S = 0.5
"""How often it is looked whether servers elsewhere have started, or should stop."""
PLACED = ("host", "port", "shard", "announce", "stop_with_stdin")
START_S = 24 * 3600.0
"""The first server of a large corpus builds the index, while the others wait for it."""


@dataclass(frozen=True)
class FleetConfig:
    """How many servers, of what, and where."""

    corpus: Path
    """Passages, as for one server."""
    index: Path | None = None
    """Folder of the index, as for one server; all servers read the same one."""
    replicas: int = 1
    """Servers of each shard: more answer more queries, and one may fail."""
    shards: int = 1
    """Ranges that the corpus is cut into: each server searches one, so that a query takes less time."""
    place: Literal["here", "ray"] = "here"
    """``ray`` spreads the servers over the nodes of the running Ray cluster; other nodes need the bearer token."""

    server: tuple[str, ...] = ()
    """Further ``key=value`` arguments of every server; on the command line they stand by themselves."""

    def __post_init__(self) -> None:
        at_least(self, 1, "replicas", "shards")

    def layouts(self) -> list[list[str]]:
        """The ``key=value`` arguments of each server, replicas of one shard apart from one another."""
        shards = [[f"shard={shard}", f"shards={self.shards}", *self.server] for shard in range(self.shards)]
        return [arguments for _ in range(self.replicas) for arguments in shards]


def start_here(
    config: FleetConfig, logs: Path, stack: ExitStack, stop: threading.Event | None = None
) -> list[RunningServer]:
    """Start all servers on this machine, to be stopped by ``stack``. Raises as ``start_server`` does."""

    def start(number: int, options: list[str]) -> RunningServer:
        log = logs / f"server_{number}.log"
        return start_server(config.corpus, log=log, index=config.index, timeout_s=START_S, options=options, stop=stop)

    layouts = config.layouts()
    with ThreadPoolExecutor(len(layouts)) as pool:
        starts = [pool.submit(start, number, options) for number, options in enumerate(layouts)]
    for future in starts:
        if future.exception() is None:
            stack.callback(future.result().stop)
    return [future.result() for future in starts]


def start_on_ray(config: FleetConfig, logs: Path, stack: ExitStack, stop: threading.Event | None = None) -> list[str]:
    """Start all servers on the nodes of the Ray cluster that is connected, and return their addresses.

    Raises InfrastructureError if one does not start.
    """
    import ray

    variables = {access.TOKEN_VARIABLE: access.token() or ""}
    host = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", runtime_env={"env_vars": variables})(_Host)
    hosts = [host.remote() for _ in config.layouts()]
    stack.callback(lambda: [ray.get(actor.stop.remote()) for actor in hosts])
    starts = [
        actor.start.remote(config.corpus, config.index, logs / f"server_{number}.log", options)
        for number, (actor, options) in enumerate(zip(hosts, config.layouts(), strict=True))
    ]
    while stop is not None and ray.wait(starts, num_returns=len(starts), timeout=LOOK_S)[1]:
        if stop.is_set():
            stack.callback(lambda: [ray.kill(actor) for actor in hosts])
            raise Stopped
    try:
        addresses: list[str] = ray.get(starts)
    except ray.exceptions.RayError as error:
        raise InfrastructureError(f"a server on the Ray cluster did not start: {error}") from error
    return addresses


class _Host:
    """An actor that holds one server process on its node; the process dies with it."""

    def __init__(self) -> None:
        self._server: RunningServer | None = None

    def start(self, corpus: Path, index: Path | None, log: Path, options: list[str]) -> str:
        import ray

        address = ray.util.get_node_ip_address()
        arguments = [f"host={address}", *options]
        self._server = start_server(corpus, log=log, index=index, timeout_s=START_S, options=arguments)
        return self._server.url

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. Raises UserError."""
    config = parse_fleet(arguments)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with ExitStack() as stack, contextlib.suppress(Stopped):
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retrieval-fleet-")))
        urls = _start(config, logs, stack, stopped)
        # Quoted for a shell and for Hydra, to which commas are a grid.
        print(f"retrieval: {len(urls)} servers ready; \"retriever='{','.join(urls)}'\"", flush=True)
        stopped.wait()
    return 0


def parse_fleet(arguments: Sequence[str]) -> FleetConfig:
    """Keys of the fleet for the fleet, all others for each server. Raises UserError, also for what a server refuses."""
    known = {field.name for field in fields(FleetConfig)} - {"server"}
    own = [word for word in arguments if "=" not in word or word.partition("=")[0] in known]
    config = replace(parse(FleetConfig, own), server=tuple(word for word in arguments if word not in own))
    for word in config.server:
        if (key := word.partition("=")[0]) in PLACED:
            raise UserError(f"{key}: a fleet chooses it for each of its servers; remove {word}")
    parse(ServerConfig, [f"corpus={config.corpus}", f"shards={config.shards}", *config.server])
    return config


def _start(config: FleetConfig, logs: Path, stack: ExitStack, stop: threading.Event) -> list[str]:
    if config.place == "here":
        return [server.url for server in start_here(config, logs, stack, stop)]
    import ray

    context: Any = ray.init(address="auto", log_to_driver=False)
    stack.callback(context.disconnect)
    return start_on_ray(config, logs, stack, stop)


if __name__ == "__main__":
    run(main)
