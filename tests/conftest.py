"""Settings of all tests."""

import os
import signal

import pytest
from hypothesis import settings

from verl.cluster.capacity import engine_needs_gpus

# What is tested here is the CPU's way, in this process and in those that it starts; bench.gpu is for cards.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

settings.register_profile("no_deadline", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("no_deadline")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background deaf to Ctrl-C; what a test interrupts would be deaf too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without vLLM's build for the CPU, leave out what starts an engine, and say so."""
    if engine_needs_gpus():
        reason = "vLLM's build for GPUs is installed: SLEUTH_ACCELERATOR=cpu bash cmd/setup.sh has that for the CPU"
        for item in items:
            if item.get_closest_marker("engine"):
                item.add_marker(pytest.mark.skip(reason))
