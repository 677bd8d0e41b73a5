"""The guardian: a small process that outlives the driver by a few seconds and takes the run's processes with it.

Every child of a run inherits the run's token in its environment, however deep in the tree and however detached it made
itself. The guardian reads a pipe that the driver holds open; when the driver is gone, in whatever way, the pipe ends,
and the guardian stops every process that carries the token, then removes what they left in shared memory and the run's
scratch folder. Should the guardian be killed as well, the next start in the same run folder does its work.

Invariants: a process is the run's if it carries the token in its environment, holds the driver's marker open (a child
that the driver forked does), or descends from such a process; the driver itself and the guardian never are. Standard
library only: this file is also run by itself, ``python -I -S reaper.py``, so that it starts at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

TOKEN_VARIABLE = "SLEUTH_RUN_TOKEN"
GRACE_S = 2.0
"""From SIGTERM to SIGKILL. Ray's own daemons stop within it; what ignores SIGTERM does not get more."""
LIMIT_S = 30.0
"""After this the guardian gives up on what the kernel will not let die (a process stuck in a device call)."""
_SHARED_MEMORY = Path("/dev/shm")
_PROC = Path("/proc")
_LOOKS = 3
"""How often a new file of /dev/shm is looked up; by then its maker has mapped it, or it is somebody else's."""

Process = tuple[int, int]
"""Process id and start time (clock ticks since boot): unlike the id alone, never reused."""


class Guardian:
    """The driver's end. Keep it for the life of the run; ``close`` it last."""

    def __init__(self, run_dir: Path, token: str, scratch: Path, held: tuple[int, ...]) -> None:
        self.token = token
        self.scratch = scratch
        """A folder for the run's temporary files (Ray's session, say), removed with the run; short, as sockets need."""
        self._held = held
        before = "\0".join(os.listdir(_SHARED_MEMORY))
        reader, self._writer = os.pipe()
        with (run_dir / "guardian.log").open("ab") as log:
            command = [sys.executable, "-I", "-S", __file__, token, str(scratch), str(os.getpid())]
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
        "boot": _boot(),
        "token": token,
        "scratch": str(scratch),
    }
    temporary = run_dir / ".driver.json.tmp"
    temporary.write_text(json.dumps(record))
    temporary.replace(run_dir / "driver.json")
    os.environ[TOKEN_VARIABLE] = token
    os.environ["SPT_NOENV"] = "1"  # setproctitle would otherwise write its titles over the environment that we look for
    return Guardian(run_dir, token, scratch, (lock, os.memfd_create(_marker(token))))


def reap_orphans(run_dir: Path) -> int:
    """Stop what a dead driver of ``run_dir`` left behind; returns how many processes that were.

    Raises UserError if that driver is alive.
    """
    run_dir = run_dir.resolve()
    try:
        record = json.loads((run_dir / "driver.json").read_text())
    except FileNotFoundError:
        return 0
    if record["boot"] == _boot() and started(record["pid"]) == record["started"]:
        if record["pid"] == os.getpid():
            return 0
        raise _already_running(run_dir, record["pid"])
    return reap(record["token"], Path(record["scratch"]), spare={os.getpid()})


def reap(token: str, scratch: Path, spare: Iterable[int] = (), shared: Iterable[Path] = ()) -> int:
    """Stop every process of the run ``token``, remove its shared memory and ``scratch``; returns how many it stopped.

    SIGTERM first, SIGKILL to what is left after ``GRACE_S``; processes that appear meanwhile are found too. ``shared``
    is shared memory known to be the run's already; no file that another process uses is removed.
    """
    spared, seen, shared = set(spare), set[Process](), set(shared)
    begun = time.monotonic()
    while living := find(token, seen, spared) or _look_again(token, seen, spared):
        elapsed = time.monotonic() - begun
        if elapsed > LIMIT_S:
            print(f"run {token}: these processes do not die: {sorted(pid for pid, _ in living)}", flush=True)
            break
        for process in living:
            shared |= _shared_memory(process[0])
            if elapsed > GRACE_S:
                _signal(process, signal.SIGKILL)
            elif process not in seen:
                _signal(process, signal.SIGTERM)
        seen |= living
        time.sleep(0.05)
    in_use = set().union(*(_shared_memory(pid) for pid in _pids())) if shared else set()
    for file in (shared - in_use) | set(_SHARED_MEMORY.glob(f"sleuth-{token}*")):
        if file.is_dir():
            shutil.rmtree(file, onerror=_say_what_stays)
        else:
            file.unlink(missing_ok=True)
    if scratch.exists():
        shutil.rmtree(scratch, onerror=_say_what_stays)
    return len(seen)


def _say_what_stays(_: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    print(f"not removed: {path}: {error[1]}", flush=True)


def find(token: str, known: Iterable[Process] = (), spare: Iterable[int] = ()) -> set[Process]:
    """The living processes of a run. ``known`` were of the run before, and their descendants are too."""
    parents: dict[int, int] = {}
    start: dict[int, int] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None:
            parents[pid], start[pid] = fields
    skip = {os.getpid(), *spare}
    entry, marker = f"{TOKEN_VARIABLE}={token}".encode(), f"/memfd:{_marker(token)} (deleted)"
    mine = {pid for pid, ticks in known if start.get(pid) == ticks}
    mine |= {pid for pid in start if pid not in skip and (entry in _environment(pid) or marker in _open_files(pid))}
    while grown := {pid for pid, parent in parents.items() if parent in mine} - mine - skip:
        mine |= grown
    return {(pid, start[pid]) for pid in mine - skip}


def _look_again(token: str, known: Iterable[Process], spare: Iterable[int]) -> set[Process]:
    """A process in the middle of fork or exec may escape one look."""
    time.sleep(0.1)
    return find(token, known, spare)


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process (or only its exit status)."""
    fields = _stat(pid)
    return None if fields is None else fields[1]


def _take(run_dir: Path) -> int:
    """Lock the folder. A lock that only orphans hold (children forked by a dead driver) is freed by reaping them."""
    from verl.errors import UserError

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


def _marker(token: str) -> str:
    """Name of the memory file that the driver holds open: a forked child, whose environment in /proc is the driver's,
    is known by it."""
    return f"sleuth-{token}"


def _already_running(run_dir: Path, pid: int) -> Exception:
    from verl.errors import UserError

    return UserError(f"{run_dir}: already running, pid {pid}; wait for it, stop it, or give another run_dir=...")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time; None for a process that is gone or a zombie."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def _open_files(pid: int) -> set[str]:
    folder = _PROC / str(pid) / "fd"
    try:
        return {_target(folder / name) for name in os.listdir(folder)}
    except OSError:  # gone, or another user's
        return set()


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed since it was listed
        return ""


def _shared_memory(pid: int) -> set[Path]:
    """Files of /dev/shm that a process maps or holds open."""
    try:
        maps = (_PROC / str(pid) / "maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        maps = []
    mapped = {Path(line.split(maxsplit=5)[5]) for line in maps if f" {_SHARED_MEMORY}/" in line}
    held = {Path(file) for file in _open_files(pid) if file.startswith(f"{_SHARED_MEMORY}/")}
    return {path for path in mapped | held if not path.name.endswith(" (deleted)")}


def _signal(process: Process, number: signal.Signals) -> None:
    pid, ticks = process
    if started(pid) == ticks:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError) as error:
            print(f"{number.name} to {pid}: {error}", flush=True)


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _names_before() -> list[Path]:
    """What stood in shared memory when the run began: the first line that the driver writes."""
    data = b""
    while not data.endswith(b"\n") and (chunk := os.read(0, 1 << 16)):
        data += chunk
    return [_SHARED_MEMORY / name for name in os.fsdecode(data.rstrip(b"\n")).split("\0")]


def _watch(token: str, driver: int) -> set[Path]:
    """Wait for the pipe on stdin to end; returns the shared memory that the run was seen to use meanwhile.

    A process that ends in good order before the guardian's turn may leave a file in /dev/shm that nobody would know
    for the run's. So new names are looked up while their owners live, at no cost as long as none appears.
    """
    claimed: set[Path] = set()
    looks = dict.fromkeys(_names_before(), _LOOKS)
    while not select.select([0], [], [], 0.5)[0] or os.read(0, 4096):
        fresh = {file for file in _SHARED_MEMORY.iterdir() if looks.get(file, 0) < _LOOKS} - claimed
        if fresh:
            mine = {driver, *(pid for pid, _ in find(token, spare={driver}))}
            found = fresh & set().union(*map(_shared_memory, mine))
            for file in sorted(found):
                print(f"run {token}: uses {file}", flush=True)
            claimed |= found
            looks |= {file: looks.get(file, 0) + 1 for file in fresh}
    return claimed


def _guard(token: str, scratch: str, driver: str) -> None:
    """Outlive the driver, then reap. The driver is spared: if it lives, it closed the pipe on purpose."""
    shared = _watch(token, int(driver))
    stopped = reap(token, Path(scratch), spare={int(driver)}, shared=shared)
    print(f"run {token}: driver {driver} is done; {stopped} processes stopped", flush=True)


if __name__ == "__main__":
    _guard(*sys.argv[1:])
