"""The guardian: a small process that outlives the driver by a few seconds and takes the run's processes with it.

It reads a pipe that the driver holds open; when the driver is gone, in whatever way, the pipe ends, and the guardian
stops every process that carries the run's token, then removes what they left in shared memory and the run's scratch
folder. How a run comes by a guardian: ``guardian``.

Invariants: a process is the run's if it carries the token in its environment, holds the driver's marker open (a child
that the driver forked does), or descends from such a process; the driver itself and the guardian never are. Simpler
bonds do not hold: Ray's and vLLM's processes leave session, group and parent; a subreaper adopts only as an ancestor,
and this is the driver's child, to outlive it; control groups are seldom a user's to make. Standard library only: this
file is also run by itself, ``python -I -S reaper.py``, so that it starts at once.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TOKEN_VARIABLE = "SLEUTH_RUN_TOKEN"
GRACE_S = 2.0
"""From SIGTERM to SIGKILL. Ray's own daemons stop within it; what ignores SIGTERM does not get more."""
LIMIT_S = 30.0
"""After this the guardian gives up on what the kernel will not let die (a process stuck in a device call)."""
SHARED_MEMORY = Path("/dev/shm")
_PROC = Path("/proc")
_LOOKS = 3
"""How often a new file of /dev/shm is looked up; by then its maker has mapped it, or it is somebody else's."""

Process = tuple[int, int]
"""Process id and start time (clock ticks since boot): unlike the id alone, never reused."""


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
    for file in (shared - in_use) | set(SHARED_MEMORY.glob(f"sleuth-{token}*")):
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
    entry, held = f"{TOKEN_VARIABLE}={token}".encode(), f"/memfd:{marker(token)} (deleted)"
    mine = {pid for pid, ticks in known if start.get(pid) == ticks}
    mine |= {pid for pid in start if pid not in skip and (entry in _environment(pid) or held in _open_files(pid))}
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


def marker(token: str) -> str:
    """Name of the memory file that the driver holds open: a forked child, whose environment in /proc is the driver's,
    is known by it."""
    return f"sleuth-{token}"


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
    folder, found = _PROC / str(pid) / "fd", set[str]()
    with suppress(OSError):  # gone, or another user's
        for name in os.listdir(folder):
            with suppress(OSError):  # closed since it was listed
                found.add(os.readlink(folder / name))
    return found


def _shared_memory(pid: int) -> set[Path]:
    """Files of /dev/shm that a process maps or holds open."""
    maps: list[str] = []
    with suppress(OSError):  # gone, or another user's
        maps = (_PROC / str(pid) / "maps").read_text(errors="surrogateescape").splitlines()
    mapped = {Path(line.split(maxsplit=5)[5]) for line in maps if f" {SHARED_MEMORY}/" in line}
    held = {Path(file) for file in _open_files(pid) if file.startswith(f"{SHARED_MEMORY}/")}
    return {path for path in mapped | held if not path.name.endswith(" (deleted)")}


def _signal(process: Process, number: signal.Signals) -> None:
    pid, ticks = process
    if started(pid) == ticks:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError) as error:
            print(f"{number.name} to {pid}: {error}", flush=True)


def boot() -> str:
    """This start of the machine: process ids of an earlier one mean nothing."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _names_before() -> list[Path]:
    """What stood in shared memory when the run began: the first line that the driver writes."""
    data = b""
    while not data.endswith(b"\n") and (chunk := os.read(0, 1 << 16)):
        data += chunk
    return [SHARED_MEMORY / name for name in os.fsdecode(data.rstrip(b"\n")).split("\0")]


def _watch(token: str, driver: int) -> set[Path]:
    """Wait for the pipe on stdin to end; returns the shared memory that the run was seen to use meanwhile.

    A process that ends in good order before the guardian's turn may leave a file in /dev/shm that nobody would know
    for the run's. So new names are looked up while their owners live, at no cost as long as none appears.
    """
    claimed: set[Path] = set()
    looks = dict.fromkeys(_names_before(), _LOOKS)
    while not select.select([0], [], [], 0.5)[0] or os.read(0, 4096):
        fresh = {file for file in SHARED_MEMORY.iterdir() if looks.get(file, 0) < _LOOKS} - claimed
        if fresh:
            mine = {driver, *(pid for pid, _ in find(token, spare={driver}))}
            found = fresh & set().union(*map(_shared_memory, mine))
            for file in sorted(found):
                print(f"run {token}: uses {file}", flush=True)
            claimed |= found
            looks |= {file: looks.get(file, 0) + 1 for file in fresh}
    return claimed


def _outlive(token: str, scratch: str, driver: str) -> None:
    """Wait for the driver's end, then reap. The driver is spared: if it lives, it closed the pipe on purpose."""
    shared = _watch(token, int(driver))
    stopped = reap(token, Path(scratch), spare={int(driver)}, shared=shared)
    print(f"run {token}: driver {driver} is done; {stopped} processes stopped", flush=True)


if __name__ == "__main__":
    _outlive(*sys.argv[1:])
