"""``python -m search_agent.evaluation.flashrag RUN out=FOLDER``: saved episodes as FlashRAG writes an evaluation.

    FOLDER/intermediate_data.json   one item an episode: its row, and ``output`` (``pred``, ``metric_score`` ...)
    FOLDER/metric_score.txt         ``name: mean``, a line a metric
    FOLDER/config.yaml              the run's configuration, where it has one

So tools that read FlashRAG's folders read ours, ReSearch's ``llm_judge.py`` among them. ``stage=`` names what is
written. Episodes that infrastructure ended are items without a prediction, scored 0.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from search_agent.console.command import run_command, words_and_options
from search_agent.evaluation.outcomes import file_of, score
from search_agent.evaluation.reading import protocol_of
from search_agent.protocols.base import SearchProtocol
from verl.durable import write_atomically
from verl.errors import UserError
from verl.rollout.episodes import Episode, read_episodes

METRICS = ("em", "f1", "acc", "precision", "recall")
"""In the order of ReSearch's ``eval_config.yaml``."""
USAGE = "write: python -m search_agent.evaluation.flashrag RUN out=FOLDER [stage=NAME]"


def main(arguments: Sequence[str]) -> int:
    """Write the folder. Raises UserError if there is something in it already."""
    run, options = read_arguments(arguments)
    out = Path(options["out"])
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: there is something in it already: name a new folder")
    protocol, file = protocol_of(run), file_of(run, options.get("stage"))
    items = [item(episode, protocol) for episode in read_episodes(file)]
    if not items:
        raise UserError(f"{file}: holds no episodes: nothing to write")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "intermediate_data.json", json.dumps(items, indent=4, ensure_ascii=False))
    means = {name: fmean(one["output"]["metric_score"][name] for one in items) for name in METRICS}
    write_atomically(out / "metric_score.txt", "".join(f"{name}: {mean}\n" for name, mean in means.items()))
    if (run / "config.yaml").exists():
        shutil.copyfile(run / "config.yaml", out / "config.yaml")
    print(f"{len(items)} episodes of {file.name}: {out}")
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The run and the options. Raises UserError on anything that is not understood."""
    runs, options = words_and_options(arguments, ("out", "stage"), USAGE)
    if len(runs) != 1 or not options.get("out"):
        raise UserError(f"name one run and out=FOLDER; {USAGE}")
    return Path(runs[0]), options


def item(episode: Episode, protocol: SearchProtocol) -> dict[str, Any]:
    """One row with its output. Raises UserError if the row has no accepted answer."""
    task, trajectory = episode.task, episode.trajectory
    scores = score(episode, protocol).scores
    answer = None if trajectory.outcome == "aborted" else protocol.read(trajectory).answer
    return {
        "id": task.id,
        "question": task.question,
        "golden_answers": list(task.golden_answers),
        "metadata": dict(task.metadata),
        "output": {
            "final_response": "".join(segment.text for segment in trajectory.segments if segment.kind != "prompt"),
            "pred": answer or "",
            "finish_reason": trajectory.outcome,
            "retrieved_times": len(trajectory.calls),
            "metric_score": {name: scores[name] for name in METRICS},
        },
    }


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
