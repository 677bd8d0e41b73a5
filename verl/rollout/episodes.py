"""Saved episodes: one line of JSON for each, with the question it was about. The one place that knows the format.

    trajectories/<stage>_<step>.jsonl.gz    split, question, golden_answers, metadata, and the trajectory's fields

Reading is lazy, and says of a bad line which file and row it is.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.groups import Group
from verl.trajectory import Trajectory

ENDING = ".jsonl.gz"
_LONGEST = 2000
"""The longest metadata value that is saved (characters of JSON): ids and labels, not whole documents."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A played episode and what it was about."""

    task: Task
    """As it was saved: question, accepted answers and short metadata. In files of earlier versions only its id."""
    split: str
    """The data that the task comes from (``train``, ``dev``, ``test``); empty in files of earlier versions."""
    trajectory: Trajectory
    stage: str = ""
    """What it was played for (``train``, ``test-after-greedy``); read from the file's name."""
    step: int = 0

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        task = self.task
        return {
            "split": self.split,
            "question": task.question,
            "golden_answers": list(task.golden_answers),
            "metadata": _short(task.metadata),
            **self.trajectory.to_record(),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], stage: str = "", step: int = 0) -> Episode:
        """Read what ``to_record`` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        trajectory = Trajectory.from_record(record)
        golds, metadata = tuple(record.get("golden_answers", ())), record.get("metadata", {})
        task = Task(trajectory.task_id, record.get("question", ""), golds, metadata, images=trajectory.images)
        return cls(task, record.get("split", ""), trajectory, stage, step)


def episodes_of(groups: Iterable[Group], split: str) -> Iterator[Episode]:
    """Every episode that was played, greedy ones included, in order."""
    for group in groups:
        for trajectory in group.played:
            yield Episode(group.task, split, trajectory)


def write_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Write a file of episodes, compressed."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for episode in episodes:
            file.write(_json_line(episode.to_record()))


def append_episode(file: BinaryIO, episode: Episode) -> None:
    """Add a line to an uncompressed file of episodes, and hand it to the system: it outlives the process."""
    file.write(_json_line(episode.to_record()))
    file.flush()


def read_episodes(file: Path) -> Iterator[Episode]:
    """The episodes of one file (``.jsonl``, compressed or not), one at a time.

    Raises UserError, naming file and row, on anything else.
    """
    stage, step = stage_and_step(file)
    number = 0
    try:
        with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as lines:
            for line in lines:
                number += 1
                yield Episode.from_record(json.loads(line), stage, step)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error}): give a file of saved trajectories") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}, row {number}: not a saved trajectory ({told})") from error
    except (EOFError, zlib.error) as error:
        raise UserError(
            f"{file}: ends in the middle, after row {number} ({error}): it was not written whole"
        ) from error


def read_run(run: Path) -> Iterator[Episode]:
    """Every saved episode of a run or an evaluation, file by file. Raises UserError if there are none."""
    for file in episode_files(run):
        yield from read_episodes(file)


def episode_files(run: Path) -> list[Path]:
    """The files of a run folder, in order of stage and step. Raises UserError if there are none."""
    files = sorted((run / "trajectories").glob(f"*{ENDING}"))
    if not files:
        raise UserError(f"{run / 'trajectories'} holds no trajectories: name the folder of a run or an evaluation")
    return files


def stage_and_step(file: Path) -> tuple[str, int]:
    """What a file's name says; another name is a stage of its own, at step 0."""
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    stage, _, step = name.rpartition("_")
    return (stage, int(step)) if stage and step.isdecimal() else (name, 0)


def _short(metadata: Any) -> dict[str, Any]:
    """What is JSON, or can be written as such, and short."""
    written = ((str(key), json.dumps(value, default=str)) for key, value in metadata.items())
    return {key: json.loads(text) for key, text in written if len(text) <= _LONGEST}


def _json_line(record: dict[str, Any]) -> bytes:
    """One line; a number that is not finite becomes null, since JSON has none."""
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate in a passage: standard JSON escapes it
        return json.dumps(record).encode() + b"\n"
