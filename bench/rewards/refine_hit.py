"""How often AutoRefine's 0.1 for a refinement is earned by copying passages that have nothing to do with the question.

Needs ``SLEUTH_TEST_DATA`` with ``wiki_mini``: 1,125 real questions and 13,915 real passages. For each question, three
passages drawn at random are copied into the refinement and the answer is wrong: what the reward pays is paid for
nothing. ``compat=upstream`` looks for the characters of an accepted answer, as published; the default looks for words,
and pays nothing for yes and no. ``--quick`` is the same measurement: it takes seconds.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.harness import Figure, main
from search_agent.protocols import autorefine as protocol
from search_agent.rewards import autorefine as reward
from verl.data.load import load_tasks
from verl.data.tasks import Task
from verl.trajectory import Trajectory

SETS = ("hotpotqa", "2wikimultihopqa", "bamboogle")
COPIED = 3
WRONG = "something else entirely"


def figures(quick: bool) -> Iterator[Figure]:
    """Shares of questions that are paid."""
    del quick
    if "SLEUTH_TEST_DATA" not in os.environ:
        raise SystemExit("set SLEUTH_TEST_DATA to the folder that holds wiki_mini")
    folder = Path(os.environ["SLEUTH_TEST_DATA"]) / "wiki_mini"
    tasks = [task for name in SETS for task in load_tasks(folder / f"{name}.jsonl")]
    with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
        passages = [json.loads(line)["contents"].partition("\n")[2] for line in lines]
    groups = {
        "answered no": [task for task in tasks if _short(task) == "no"],
        "answered yes": [task for task in tasks if _short(task) == "yes"],
        "all other": [task for task in tasks if _short(task) not in ("yes", "no")],
    }
    for name, asked in groups.items():
        label = f"paid for {COPIED} random passages, {len(asked)} questions {name}"
        yield Figure(f"{label}: characters, as published", paid(asked, passages, "upstream"), "share")
        words = paid(asked, passages, "none")
        known = name == "all other"
        figure = f"{label}: words, the default"
        yield Figure(figure, words, "share") if known else Figure.at_most(figure, words, "share", 0.0)


def paid(tasks: Sequence[Task], passages: Sequence[str], compat: str) -> float:
    """The share of ``tasks`` whose wrong answer earns something; the same passages for every ``compat``."""
    reader = protocol.build(protocol.Config())
    score = reward.build(reward.Config(compat=compat), reader)  # type: ignore[arg-type]
    draw = random.Random(0)
    earned = [score(task, copying(task, draw.sample(list(passages), COPIED))).reward for task in tasks]
    return sum(value > 0 for value in earned) / len(earned)


def copying(task: Task, passages: Sequence[str]) -> Trajectory:
    """An episode that searches, copies what it is given, and answers wrongly."""
    turns = ["<think> t </think> <search> q </search>"]
    turns.append(f"<refine> {' '.join(passages)} </refine> <answer> {WRONG} </answer>")
    trajectory = Trajectory(task.id, 0)
    trajectory.append_prompt([1], task.question)
    for number, text in enumerate(turns):
        trajectory.append_generated([1], text, [0.0], [0], "stop")
        if number == 0:
            trajectory.append_observation([1], " ".join(passages))
    trajectory.outcome = "finished"
    return trajectory


def _short(task: Task) -> str:
    return task.golden_answers[0].strip().lower()


if __name__ == "__main__":
    main(figures)
