"""A run folder of a few episodes, with texts that would act if a page let them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from verl.data.tasks import Task
from verl.rollout.episodes import Episode, write_episodes
from verl.trajectory import ToolCall, ToolResult, Trajectory

EVIL = "</script><script>window.harmed=1</script><img src=x onerror=window.harmed=1>\u2028 ]]> --> ${harm}"
ASHBY = Task("q1", "Where was the author of Red Sky born?", ("Ashby",), {"supporting_ids": ["red-sky", "mara"]})
HOSTILE = Task(f"q2{EVIL}", f"Who? {EVIL}", (EVIL, "Ashby"), {})

Rows = Sequence[tuple[Task, Trajectory]]


def search_episode(task: Task, sample: int, *, answer: str, evil: str = "") -> Trajectory:
    """Two searches, then an answer."""
    trajectory = Trajectory(task.id, sample, outcome="finished")
    trajectory.append_prompt([1, 2, 3], f"Question: {task.question}\n")
    passages = [("red-sky", "Red Sky", "Red Sky was written by Mara."), ("mara", "Mara", "Mara was born in Ashby.")]
    for number, (identifier, title, text) in enumerate(passages):
        wrote = f"<think> step {number} {evil} </think>\n<search> {title} </search>"
        trajectory.append_generated([5, 6], wrote, [-0.5, -2.5], [3, 3], "stop")
        results = (ToolResult(identifier, 7.5, title), ToolResult(f"other-{number}{evil}", 1.25, "Other"))
        shown = f"\n\n<documents>Doc 1(Title: {title}) {text} {evil}\nDoc 2(Title: Other) Nothing.</documents>\n\n"
        call = ToolCall("search", f"{title}{evil}", results, latency_s=0.004 * (number + 1), cached=bool(number))
        trajectory.append_observation([7] * 9, shown, [call])
    last = f"<refine> born in Ashby {evil}</refine>\n<answer> {answer} </answer>"
    trajectory.append_generated([8, 9], last, [-0.1, -0.1], [3, 3], "stop")
    trajectory.reward = float(answer in task.golden_answers)
    trajectory.reward_parts = {"em": trajectory.reward, "f1": trajectory.reward, "answered": 1.0, "searches": 2.0}
    trajectory.turn_gains = (0.5, 0.5, 0.0)
    return trajectory


def aborted(task: Task, sample: int) -> Trajectory:
    """An episode that infrastructure ended before it was scored."""
    trajectory = Trajectory(task.id, sample, outcome="aborted", reason=f"the retriever was away {EVIL}")
    trajectory.append_prompt([1], "Question")
    return trajectory


def write_run(
    folder: Path, stages: Mapping[tuple[str, int], Rows], metrics: Sequence[Mapping[str, float]] = ()
) -> Path:
    """A run folder with these episodes by stage and step."""
    (folder / "trajectories").mkdir(parents=True)
    for (stage, step), rows in stages.items():
        episodes = [Episode(task, "test", trajectory) for task, trajectory in rows]
        write_episodes(folder / "trajectories" / f"{stage}_{step:06d}.jsonl.gz", episodes)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def small_run(folder: Path) -> Path:
    """Training and two evaluations; right and wrong, hostile and aborted."""
    return write_run(
        folder,
        {
            ("train", 4): [
                (ASHBY, search_episode(ASHBY, 0, answer="Ashby")),
                (ASHBY, search_episode(ASHBY, 1, answer="Malden")),
                (HOSTILE, search_episode(HOSTILE, 0, answer=EVIL, evil=EVIL)),
                (HOSTILE, aborted(HOSTILE, 1)),
            ],
            ("test-before-greedy", 0): [(ASHBY, search_episode(ASHBY, 0, answer="Malden"))],
            ("test-after-greedy", 0): [(ASHBY, search_episode(ASHBY, 0, answer="Ashby"))],
        },
        [{"step": step, "time": 0.0, "reward": step / 4, "em": step / 5, "searches": 2.0} for step in range(5)],
    )
