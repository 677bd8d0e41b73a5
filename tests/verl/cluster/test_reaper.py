"""However the driver ends, its processes and shared memory are gone within seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from verl.cluster.guardian import reap_orphans
from verl.cluster.reaper import TOKEN_VARIABLE, find, started
from verl.errors import UserError

# A tree of the worst behaved kind: deaf to SIGTERM and SIGINT, in a session of its own, its parent gone, mapping shared
# memory under a name of its own choice.
DEAF_DAEMON = """
import mmap, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
with open(sys.argv[1], "wb+") as file:
    file.truncate(4096); held = mmap.mmap(file.fileno(), 4096)
open(sys.argv[2], "w").write(str(os.getpid()))
time.sleep(600)
"""
DRIVER = """
import os, pathlib, subprocess, sys, time
from verl.cluster.guardian import start_guardian
folder, daemon, shared, note = sys.argv[1:]
guardian = start_guardian(pathlib.Path(folder))
guardian.scratch.mkdir(); (guardian.scratch / "session").write_text("x")
os.mkdir(f"/dev/shm/sleuth-{guardian.token}"); open(f"/dev/shm/sleuth-{guardian.token}/weights", "w").close()
subprocess.run([sys.executable, "-c", daemon, shared, note], check=True)
forked = os.fork()
while forked == 0: time.sleep(1)
print(guardian.token, guardian.scratch, forked, guardian.pid, flush=True)
if sys.stdin.readline() == "close\\n":
    guardian.close(); print("closed", flush=True)
time.sleep(600)
"""


class Run:
    """A driver with a daemon and a forked child, and what it told about itself."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.note = folder / "run", folder / "daemon.pid"
        self.shared = Path(f"/dev/shm/probe-{os.getpid()}-{time.monotonic_ns()}")
        self.driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(self.folder), DEAF_DAEMON, str(self.shared), str(self.note)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.driver.stdout is not None
        self.token, scratch, forked, guardian = self.driver.stdout.readline().split()
        self.scratch, self.forked, self.guardian = Path(scratch), int(forked), int(guardian)
        wait(lambda: self.note.exists() and self.note.read_text() != "", 10)
        self.daemon = int(self.note.read_text())

    def clean(self) -> bool:
        left = find(self.token, spare={self.driver.pid})
        files = [self.shared, self.scratch, Path(f"/dev/shm/sleuth-{self.token}")]
        return not left and not any(file.exists() for file in files)


def wait(condition: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    try:
        yield run
    finally:
        run.driver.kill()
        run.driver.communicate()
        wait(run.clean, 10)


def test_a_run_is_found_whole_before_it_is_reaped(run: Run) -> None:
    found = {pid for pid, _ in find(run.token, spare={run.driver.pid})}
    assert {run.daemon, run.forked} <= found
    assert run.guardian not in found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_10_s_after_the_driver_was_ended(run: Run, number: signal.Signals) -> None:
    assert not run.clean()
    run.driver.send_signal(number)
    assert wait(run.clean, 10)
    assert started(run.daemon) is None
    assert wait(lambda: "processes stopped" in (run.folder / "guardian.log").read_text(), 5)


def test_closing_waits_until_nothing_is_left_and_spares_the_driver(run: Run) -> None:
    assert run.driver.stdin is not None
    assert run.driver.stdout is not None
    run.driver.stdin.write("close\n")
    run.driver.stdin.flush()
    assert run.driver.stdout.readline() == "closed\n"
    assert run.clean()
    assert run.driver.poll() is None


def test_the_next_start_does_the_work_of_a_guardian_that_was_killed_too(run: Run) -> None:
    os.kill(run.guardian, signal.SIGKILL)
    run.driver.kill()
    run.driver.wait()
    assert not run.clean()
    assert reap_orphans(run.folder) >= 2
    assert run.clean()


def test_shared_memory_of_a_process_that_ended_before_the_driver_is_removed(tmp_path: Path) -> None:
    name = f"probe-{os.getpid()}-{time.monotonic_ns()}"
    maker = (
        "import sys, mmap, time; file = open(sys.argv[1], 'wb+'); file.truncate(4096); mmap.mmap(file.fileno(), 4096);"
        "print('made', flush=True); time.sleep(600)"
    )
    driver = (
        "import sys, pathlib, subprocess; from verl.cluster.guardian import start_guardian;"
        "guardian = start_guardian(pathlib.Path(sys.argv[1]));"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[3]]); sys.stdin.readline();"
        "child.kill(); child.wait(); guardian.close()"
    )
    command = [sys.executable, "-c", driver, str(tmp_path), maker, f"/dev/shm/{name}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        assert wait(lambda: f"uses /dev/shm/{name}" in (tmp_path / "guardian.log").read_text(), 30)
        process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert not Path(f"/dev/shm/{name}").exists()


def test_a_folder_with_a_live_driver_is_refused_with_its_pid(run: Run) -> None:
    with pytest.raises(UserError, match=f"already running, pid {run.driver.pid}"):
        reap_orphans(run.folder)
    assert started(run.daemon) is not None


def test_a_folder_can_be_taken_again_at_once_after_its_driver_was_killed(run: Run) -> None:
    """The new driver and the old guardian meet: neither harms the other."""
    run.driver.kill()
    run.driver.wait()
    code = (
        "import sys, pathlib; from verl.cluster.guardian import start_guardian;"
        "start_guardian(pathlib.Path(sys.argv[1])).close()"
    )
    subprocess.run([sys.executable, "-c", code, str(run.folder)], check=True, timeout=30)
    assert wait(run.clean, 10)


def test_a_process_id_that_was_given_to_another_process_is_not_the_driver(tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = {"pid": 1, "started": -1, "boot": boot, "token": "0" * 12, "scratch": str(tmp_path / "none")}
    (tmp_path / "driver.json").write_text(json.dumps(record))
    assert reap_orphans(tmp_path) == 0


def test_another_runs_processes_are_left_alone(tmp_path: Path, run: Run) -> None:
    environment = {**os.environ, TOKEN_VARIABLE: run.token + "0"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment) as other:
        try:
            run.driver.kill()
            assert wait(run.clean, 10)
            assert other.poll() is None
        finally:
            other.kill()


def test_the_guardian_starts_at_once_without_site_packages() -> None:
    reaper = Path(__file__).parents[3] / "verl/cluster/reaper.py"
    code = f"import sys, runpy; runpy.run_path({str(reaper)!r}); print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "'verl'" not in done.stdout
    assert "'random'" not in done.stdout
