"""Where a recipe that is sized for a CPU runs: on the CPU, or on one GPU where the installed engine needs one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from search_agent.console.command import load_config
from verl.cluster.capacity import engine_needs_gpus, local_gpus
from verl.config.compose import expand_grid

_SAYS_WHERE = re.compile(r"\+*(hardware=|cluster\.)")


def on_this_machine(arguments: Sequence[str]) -> list[str]:
    """The words of a command, with ``hardware=gpu1`` where they would compute on the CPU and this Python cannot.

    Words that say where (``hardware=``, ``cluster.``) stand as they are. What is chosen is said in one line.
    """
    if any(map(_SAYS_WHERE.match, arguments)) or not engine_needs_gpus() or local_gpus() == 0:
        return list(arguments)
    first = expand_grid([argument for argument in arguments if argument != "-m"])[0]
    if load_config(first).cluster.gpus_per_process:
        return list(arguments)
    print(
        "hardware=gpu1: learner and engine take turns on one GPU, for which this Python has vLLM's build; say hardware="
        " or cluster. keys to have it otherwise, or SLEUTH_ACCELERATOR=cpu bash cmd/setup.sh for the CPU",
        file=sys.stderr,
    )
    return [*arguments, "hardware=gpu1"]
