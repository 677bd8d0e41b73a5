"""Ports, thread counts and logs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from verl.cluster.processes import available_cores, free_port, tail, thread_environment
from verl.errors import UserError


def test_every_library_is_held_to_the_same_number_of_threads() -> None:
    environment = thread_environment(3)
    assert {value for key, value in environment.items() if key.endswith("_NUM_THREADS")} == {"3"}
    with pytest.raises(UserError):
        thread_environment(0)


def test_cores_are_at_least_one_and_at_most_the_machines() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            assert client.getpeername() == ("127.0.0.1", port)


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
