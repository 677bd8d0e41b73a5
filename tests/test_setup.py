"""What the set-up script must never do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose ``.venv`` is a link to a folder that others work with."""
    root = tmp_path / "checkout"
    for folder in ("cmd", "requirements"):
        shutil.copytree(ROOT / folder, root / folder)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "package.py").write_text("in use\n")
    (root / ".venv").symlink_to(tmp_path / "shared")
    return root


def setup(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "cmd/setup.sh"], cwd=checkout, capture_output=True, text=True, check=False)


def test_an_environment_behind_a_link_is_used_and_left_alone(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(shutil.which("python3") or "")
    done = setup(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (checkout / ".venv").iterdir()} == {"bin", "package.py"}


def test_a_link_to_a_folder_without_python_is_an_error_and_the_folder_stays(checkout: Path) -> None:
    done = setup(checkout)
    assert done.returncode == 2
    assert "which holds no Python: set it up there, or remove the link" in done.stderr
    assert (checkout / ".venv" / "package.py").read_text() == "in use\n"
