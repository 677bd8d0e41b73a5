"""Episodes of an evaluation as they end, one line each on disk: a command that was broken off goes on where it was."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verl.config.compose import config_hash
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode, append_episode, read_episodes
from verl.trajectory import Trajectory

Key = tuple[str, str, int]
"""Stage, task, sample."""


class Journal:
    """A folder ``journal-.../`` with one file a stage. What a killed process left half written is cut off."""

    def __init__(self, folder: Path, played: Mapping[str, Any], *, fresh: bool = False) -> None:
        """In ``folder``, for what ``played`` decides; ``fresh`` forgets what was played before."""
        self._folder = folder / f"journal-{config_hash(dict(played))}"
        if fresh:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, stage: str, tasks: Mapping[str, Task]) -> dict[Key, Trajectory]:
        """What was played of these tasks; what infrastructure ended, and what was another question, is played again."""
        file, found = self._file(stage), dict[Key, Trajectory]()
        if not file.exists():
            return found
        cut_torn_line(file)
        for episode in read_episodes(file):
            played = episode.trajectory
            task = tasks.get(played.task_id)
            same = task and (task.question, task.golden_answers) == (episode.task.question, episode.task.golden_answers)
            if same and played.outcome != "aborted":
                found[stage, played.task_id, played.sample] = played
        return found

    def add(self, stage: str, episode: Episode) -> None:
        """Keep an episode that has ended."""
        with self._file(stage).open("ab") as file:
            append_episode(file, episode)

    def _file(self, stage: str) -> Path:
        return self._folder / f"{stage}.jsonl"


def stamp(model: str) -> list[tuple[str, int, int]]:
    """What tells the files of a model's folder from others of the same names: sizes, and when they were written."""
    files = sorted(file for file in Path(model).resolve().rglob("*") if file.is_file())
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def cut_torn_line(file: Path) -> None:
    """Take away a last line without its end."""
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While the block runs no other command plays in this folder. Raises UserError if one does."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another command plays into it now: wait for it, or write run_dir=") from error
        yield
