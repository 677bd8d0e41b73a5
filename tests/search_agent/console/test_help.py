"""Help answers before anything is installed, and names every preset and key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from search_agent.config import RunConfig
from search_agent.console.help import SMALL, USAGE, command_help, presets
from verl.config.document import field_docs

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("command", [*USAGE, *SMALL])
def test_help_needs_no_package(command: str) -> None:
    # -S leaves site-packages out, so nothing that is installed can be imported.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "search_agent.console.help", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"bash cmd/{command}.sh")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [*USAGE, *SMALL])
def test_the_command_asks_for_help_before_it_sets_up(command: str, flag: str) -> None:
    script = (ROOT / "cmd" / f"{command}.sh").read_text().splitlines()
    asks = next(number for number, line in enumerate(script) if "cmd/help.sh" in line)
    assert f'" {flag} "' in script[asks]
    assert asks < script.index("bash cmd/setup.sh")


def test_every_preset_and_every_key_of_a_run_is_listed() -> None:
    text = command_help("train")
    for preset in presets():
        assert f"  {preset.group}={preset.name} " in text
    for name in field_docs(RunConfig):
        assert f"\n{name}=" in text or f"\n{name}." in text


def test_keys_of_a_plug_in_are_listed_once() -> None:
    text = command_help("train")
    assert text.count("protocol.passages=") == 1
    assert "Keys with protocol=autorefine or protocol=autorefine_short:" in text


def test_the_text_of_a_preset_is_told_whole() -> None:
    text = " ".join(command_help("train").split())
    for preset in presets():
        file = (ROOT / "configs" / preset.group / f"{preset.name}.yaml").read_text()
        comment = [line[2:] for line in file.splitlines() if line.startswith("# ") and not line.startswith("# @")]
        assert " ".join(comment[:2]).strip() in text or comment[0] in text
    assert "two updates a batch so that the clip can act." in text
    assert "sleeps while the learner works. Not run where it was written." in text
