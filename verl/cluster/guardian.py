"""The driver's end of a run's clean-up: the run folder is taken, and a guardian stands beside the driver.

Invariants: one live driver has a run folder; every child of the run inherits the run's token in its environment,
however deep in the tree and however detached it made itself; the pipe to the guardian ends with the driver, in
whatever way that ends. The guardian itself is ``reaper``. Should it be killed as well, the next start in the same run
folder does its work.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from verl.cluster import reaper
from verl.cluster.reaper import LIMIT_S, SHARED_MEMORY, TOKEN_VARIABLE, boot, marker, reap, started
from verl.durable import write_atomically
from verl.errors import UserError


class Guardian:
    """The driver's end. Keep it for the life of the run; ``close`` it last."""

    def __init__(self, run_dir: Path, token: str, scratch: Path, held: tuple[int, ...]) -> None:
        self.token = token
        self.scratch = scratch
        """A folder for the run's temporary files (Ray's session, say), removed with the run; short, as sockets need."""
        self._held = held
        before = "\0".join(os.listdir(SHARED_MEMORY))
        reader, self._writer = os.pipe()
        with (run_dir / "guardian.log").open("ab") as log:
            command = [sys.executable, "-I", "-S", reaper.__file__, token, str(scratch), str(os.getpid())]
            environment = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
            self._process = subprocess.Popen(
                command, stdin=reader, stdout=log, stderr=log, cwd="/", env=environment, start_new_session=True
            )
        os.close(reader)
        os.write(self._writer, os.fsencode(before) + b"\n")
        self.pid = self._process.pid
        os.register_at_fork(after_in_child=self._forget)

    def close(self, timeout_s: float = LIMIT_S) -> None:
        """End the run: returns when no process of it is left."""
        self._forget()
        self._process.wait(timeout_s)
        for descriptor in self._held:
            os.close(descriptor)
        self._held = ()

    def _forget(self) -> None:
        """Let go of the pipe: a forked child must not hold it, or the guardian would wait for that child too."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def start_guardian(run_dir: Path) -> Guardian:
    """Take the run folder for this process, clear what a dead driver left, and put a guardian beside us.

    Sets the token in ``os.environ``: start it before any child. Raises UserError if a live driver has the folder.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    run_dir = run_dir.resolve()
    lock = _take(run_dir)
    token = os.urandom(6).hex()
    scratch = _temporary_folder() / f"sleuth-{token}"
    record = {
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "boot": boot(),
        "token": token,
        "scratch": str(scratch),
    }
    write_atomically(run_dir / "driver.json", json.dumps(record))
    os.environ[TOKEN_VARIABLE] = token
    os.environ["SPT_NOENV"] = "1"  # setproctitle would otherwise write its titles over the environment that we look for
    return Guardian(run_dir, token, scratch, (lock, os.memfd_create(marker(token))))


def reap_orphans(run_dir: Path) -> int:
    """Stop what a dead driver of ``run_dir`` left behind; returns how many processes that were.

    Raises UserError if that driver is alive.
    """
    run_dir = run_dir.resolve()
    try:
        record = json.loads((run_dir / "driver.json").read_text())
    except FileNotFoundError:
        return 0
    if record["boot"] == boot() and started(record["pid"]) == record["started"]:
        if record["pid"] == os.getpid():
            return 0
        raise _already_running(run_dir, record["pid"])
    return reap(record["token"], Path(record["scratch"]), spare={os.getpid()})


def _take(run_dir: Path) -> int:
    """Lock the folder. A lock that only orphans hold (children forked by a dead driver) is freed by reaping them."""
    lock = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for _ in range(100):
            reap_orphans(run_dir)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                time.sleep(0.05)
        raise UserError(f"{run_dir}: another process holds {run_dir / '.lock'}; stop it or give another run_dir=...")
    except BaseException:
        os.close(lock)
        raise


def _temporary_folder() -> Path:
    """``$TMPDIR`` unless it is long: a socket's path may have 107 characters, and Ray adds about 75 to the folder's."""
    named = os.environ.get("TMPDIR", "")
    return Path(named if 0 < len(named) < 12 else "/tmp")


def _already_running(run_dir: Path, pid: int) -> Exception:
    return UserError(f"{run_dir}: already running, pid {pid}; wait for it, stop it, or give another run_dir=...")
