"""Small facts about processes on one machine: thread counts, ports, logs. Nothing here starts anything."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections import deque
from pathlib import Path

from verl.errors import UserError

_PARENT = "SLEUTH_END_WITH"
_PR_SET_PDEATHSIG = 1


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that hold a process to ``threads`` compute threads, for a child before it imports torch.

    Idle OpenMP threads sleep at once instead of spinning: on few cores the spinning of one process is the other's time.
    """
    if threads < 1:
        raise UserError(f"threads is {threads}: write 1 or more")
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NUMEXPR_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
    }


def parent_variable() -> dict[str, str]:
    """What a child that is to end with this process gets in its environment; it calls ``end_with_parent``."""
    return {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Have the kernel end this process (SIGTERM) when the one that started it ends, in whatever way, if that asked so.

    To be called before threads and children are started; children of this process are not concerned.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is not None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it ended before we asked
            os.kill(os.getpid(), signal.SIGTERM)


def available_cores() -> int:
    """Cores this process may use: its CPU affinity, or less where a container's quota allows less."""
    allowed = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    return allowed if limit == "max" else max(1, min(allowed, int(limit) // int(period)))


def available_memory_gib() -> float:
    """Memory that processes can still take: what the kernel calls available, or less where a container allows less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) << 10
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.stat"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        taken = dict(line.split() for line in used.read_text().splitlines())
        free = min(free, int(text) - int(taken["anon"]) - int(taken["shmem"]))  # cached files give way
    return free / 2**30


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago. Prefer port 0 where the server can announce what it got."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a text file, for an error message; says so if there is no such file."""
    if not log.is_file():
        return f"(no log at {log})"
    with log.open(errors="replace") as stream:
        return "".join(deque(stream, maxlen=lines)).rstrip()
