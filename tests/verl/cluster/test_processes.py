"""Ports, thread counts and logs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from verl.cluster.processes import available_cores, check_port, free_port, tail, thread_environment
from verl.errors import UserError


def test_every_library_is_held_to_the_same_number_of_threads() -> None:
    environment = thread_environment(3)
    assert {value for key, value in environment.items() if key.endswith("_NUM_THREADS")} == {"3"}
    with pytest.raises(UserError):
        thread_environment(0)


def test_cores_are_at_least_one_and_at_most_the_machines() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_a_free_port_can_be_listened_on_and_then_is_refused() -> None:
    port = free_port()
    check_port("127.0.0.1", port)
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1:0"):
        check_port("192.0.2.1", 0)


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"one\ntwo\nthr\xffee\n")
    assert tail(log, 2) == "two\nthr\ufffdee"
    assert "no log at" in tail(tmp_path / "none")
