"""Ports, thread counts and logs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from verl.cluster.processes import (
    available_cores,
    available_memory_gib,
    free_port,
    interface_of,
    left_by_groups,
    tail,
    thread_environment,
)
from verl.errors import UserError


def test_every_library_is_held_to_the_same_number_of_threads() -> None:
    environment = thread_environment(3)
    assert {value for key, value in environment.items() if key.endswith("_NUM_THREADS")} == {"3"}
    with pytest.raises(UserError):
        thread_environment(0)


def test_cores_are_at_least_one_and_at_most_the_machines() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def write_group(folder: Path, limit: str, allowed: str, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(f"{allowed}\n")
    (folder / "memory.stat").write_text(stat)


def test_the_tightest_control_group_around_a_process_bounds_its_memory(tmp_path: Path) -> None:
    stat = "anon 30\nfile 500\nshmem 3\n"
    write_group(tmp_path / "job", "memory.max", "1000", stat)
    write_group(tmp_path / "job/step", "memory.max", "max", stat)
    write_group(tmp_path / "job/step/task", "memory.max", "2000", stat)
    write_group(tmp_path / "other", "memory.max", "1", stat)
    assert list(left_by_groups(tmp_path, "0::/job/step/task\n")) == [1967, 967]


def test_the_older_interface_of_control_groups_bounds_memory_too(tmp_path: Path) -> None:
    stat = "rss 1\nshmem 1\ntotal_rss 30\ntotal_cache 500\ntotal_shmem 3\n"
    write_group(tmp_path / "memory", "memory.limit_in_bytes", "1000", stat)
    own = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"  # a path of the host, which is not there
    assert list(left_by_groups(tmp_path, own)) == [967]


def test_this_machine_says_how_much_memory_is_left() -> None:
    assert 0 < available_memory_gib() < 2**20


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            assert client.getpeername() == ("127.0.0.1", port)


def test_an_interface_is_known_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # an address for examples


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"one\ntwo\nthr\xffee\n")
    assert tail(log, 2) == "two\nthr\ufffdee"
    assert "no log at" in tail(tmp_path / "none")


CHILD = "import time; from verl.cluster.processes import end_with_parent; end_with_parent(); print('up', flush=True); "
PARENT = (
    "import os, subprocess, sys; from verl.cluster.processes import parent_variable;"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env={**os.environ, **parent_variable()});"
    "print(child.pid, flush=True); child.wait()"
)


def test_a_child_that_was_asked_to_ends_with_its_parent_however_that_ends() -> None:
    code = CHILD + "time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "up\n"
        parent.kill()
        psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_asks_a_child_to_end_with_its_parent_is_not_handed_on() -> None:
    code = CHILD + "import os; print('SLEUTH_END_WITH' in os.environ)"
    done = subprocess.run([sys.executable, "-c", PARENT, code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[1:] == ["up", "False"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["up", "False"]
