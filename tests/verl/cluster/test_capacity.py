"""Shared memory that is too small for the run is told before it, with the way out."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl.cluster.capacity import check_shared_memory
from verl.errors import UserError


def test_a_containers_default_is_too_small_for_weights_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=64 << 20))
    with pytest.raises(UserError, match=r"needs 6\.2 .*--shm-size=7g"):
        check_shared_memory(3.0, 0.25, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=7 << 30))
    check_shared_memory(3.0, 0.25, tmp_path)
