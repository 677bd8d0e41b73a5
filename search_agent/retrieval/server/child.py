"""Runs a retrieval server as a child process on a free loopback port.

The child holds the read end of a pipe; it stops when this process closes the other end, which the kernel does for it
however this process ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from verl.errors import InfrastructureError, UserError

POLL_S = 0.02
STOP_S = 35.0
LOG_LINES = 8
USER_ERROR_STATUS = 2


class Stopped(Exception):
    """Told to stop before it was ready."""


@dataclass(slots=True)
class RunningServer:
    """A server that is ready; ``stop`` it, or use it as a context manager."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    def stop(self) -> None:
        """Drain and end it; kill it if that takes longer than its own bound. Does nothing the second time."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_server(
    corpus: Path | None,
    *,
    log: Path,
    index: Path | None = None,
    timeout_s: float = 60,
    options: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> RunningServer:
    """Start a server on a free loopback port and wait until it is ready; ``corpus`` is None for a back end without one.

    Its output goes to ``log`` (appended); ``options`` are further ``key=value`` arguments. Raises Stopped once ``stop``
    is set, however long an index is being built. Raises UserError with the
    server's own message if the corpus is at fault, InfrastructureError with the last lines of the log if the server
    ends for another reason or is not ready after ``timeout_s``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    announce = log.with_name(f"{log.name}.{os.getpid()}.{time.monotonic_ns()}.announce")
    arguments = ["port=0", f"announce={announce}", "stop_with_stdin=true", *options]
    if corpus is not None:
        arguments.append(f"corpus={corpus}")
    if index is not None:
        arguments.append(f"index={index}")
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH")) if path)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "search_agent.retrieval.server", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths},
        )
    server = RunningServer("", process)
    try:
        server.url = _wait(process, announce, log, time.monotonic() + timeout_s, stop)
    except BaseException:
        process.kill()
        server.stop()
        raise
    finally:
        announce.unlink(missing_ok=True)
    return server


def _wait(
    process: subprocess.Popen[bytes], announce: Path, log: Path, deadline: float, stop: threading.Event | None
) -> str:
    while not announce.exists():
        if stop is not None and stop.is_set():
            raise Stopped
        if process.poll() == USER_ERROR_STATUS:
            raise UserError(_tail(log, 1).removeprefix("error: "))
        if process.returncode is not None:
            raise InfrastructureError(f"the retrieval server ended with {process.returncode}: {_tail(log)}")
        if time.monotonic() > deadline:
            raise InfrastructureError(f"the retrieval server is not ready in time: {_tail(log)}")
        time.sleep(POLL_S)
    url: str = orjson.loads(announce.read_bytes())["url"]
    return url


_codes = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\0-\x09\x0b-\x1f\x7f]")
"""Colours and other control characters, which a message must not carry to a terminal."""


def _tail(log: Path, num_lines: int = LOG_LINES) -> str:
    lines = _codes.sub("", log.read_text("utf-8", "replace")).splitlines()[-num_lines:]
    return " | ".join(lines) or f"nothing in {log}"
