"""The kernels of GPUs say what PyTorch's operators say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted_kernels.py")


def test_kernels_and_what_calls_them_say_what_operators_in_float64_say() -> None:
    """Triton has to be told to interpret before it is imported, and other tests import it."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "." * 14 in done.stdout
