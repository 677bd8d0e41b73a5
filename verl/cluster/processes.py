"""Small facts about processes on one machine: thread counts, ports, logs. Nothing here starts anything."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from verl.errors import UserError

_PARENT = "SLEUTH_END_WITH"
_PR_SET_PDEATHSIG = 1
_SIOCGIFADDR = 0x8915


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
    return min([free, *left_by_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())]) / 2**30


def left_by_groups(root: Path, own: str) -> Iterator[int]:
    """Bytes that this process's control groups still allow, each that has a limit: its own, and those around it.

    ``root`` is where they are mounted, ``own`` is ``/proc/self/cgroup``: both versions of the kernel's interface.
    """
    for line in own.splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base, limit = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        group = base / path.lstrip("/")  # seen from a container it may not be there, and the root is the container's
        for folder in (group, *group.parents):
            if folder.is_relative_to(base) and (folder / limit).exists():
                allowed = (folder / limit).read_text().strip()
                taken = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                parts = ("total_rss", "total_shmem") if kinds else ("anon", "shmem")  # cached files give way
                if allowed != "max":
                    yield int(allowed) - sum(int(taken[part]) for part in parts)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago. Prefer port 0 where the server can announce what it got."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a text file, for an error message; says so if there is no such file."""
    if not log.is_file():
        return f"(no log at {log})"
    with log.open(errors="replace") as stream:
        return "".join(deque(stream, maxlen=lines)).rstrip()
