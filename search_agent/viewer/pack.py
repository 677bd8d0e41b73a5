"""Episodes in few bytes: one index that opens at once, and blocks that are inflated when an episode is opened.

The index holds a column for each thing that the table sorts and filters by. A block is gzipped JSON of ``BLOCK``
episodes that follow each other: the samples of a question share its prompt and its passages, so they pack well.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from search_agent.evaluation.diagnostics import Diagnosis, accuracy_by_searches, diagnose, summarise
from search_agent.protocols.base import SearchProtocol
from search_agent.rewards.evidence import EVIDENCE
from search_agent.rewards.text import exact_match
from search_agent.viewer.passages import passage_bounds
from search_agent.viewer.pieces import Pieces, utf16_length
from search_agent.viewer.runs import Run
from verl.data.tasks import Task
from verl.rollout.episodes import Episode
from verl.trajectory import Segment, ToolCall, Trajectory

BLOCK = 64
"""Episodes in a block: opening one inflates so many, and fewer would pack worse."""
_COLUMNS = ("run", "stage", "step", "question", "sample", "outcome", "reward", "answer", "searches", "turns", "tokens")
_DERIVED = ("right", "staleness", "evidence", "verdict", "credit")


@dataclass
class Packed:
    """What a page is made of."""

    index: dict[str, Any]
    blocks: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the blocks."""
        return sum(map(len, self.blocks))


def pack(runs: Sequence[Run]) -> Packed:
    """Read and pack every episode of the runs."""
    packer = _Packer()
    described = [packer.add(number, run) for number, run in enumerate(runs)]
    packer.flush()
    index = {
        "runs": described,
        "questions": [_question(task) for task in packer.questions.values()],
        "names": {name: list(known) for name, known in packer.names.items()},
        "columns": packer.columns,
        "parts": packer.parts,
        "block": BLOCK,
    }
    return Packed(index, packer.blocks)


class _Packer:
    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in (*_COLUMNS, *_DERIVED)}
        self.parts: dict[str, list[float | None]] = {}
        self.names: dict[str, dict[str, int]] = {name: {} for name in ("stage", "outcome", "answer", "verdict")}
        self.questions: dict[tuple[str, str, tuple[str, ...]], Task] = {}
        self._numbers: dict[tuple[str, str, tuple[str, ...]], int] = {}
        self._waiting: list[list[Any]] = []

    def add(self, number: int, run: Run) -> dict[str, Any]:
        """Pack one run; returns what the index says of it."""
        pieces = Pieces(run.decoder)
        stages: dict[str, list[Diagnosis]] = {}
        first, count = len(self.columns["run"]), 0
        for episode in run.episodes:
            reading = run.protocol.read(episode.trajectory)
            diagnosis = diagnose(episode.task, episode.trajectory, reading, right=_right(episode, reading.answer))
            stages.setdefault(episode.stage, []).append(diagnosis)
            self._row(number, episode, reading.answer, diagnosis)
            self._waiting.append(_episode(episode.trajectory, run.protocol, pieces))
            count += 1
            if len(self._waiting) == BLOCK:
                self.flush()
        self._credit(first)
        return {
            "name": run.name,
            "curves": run.curves,
            "episodes": count,
            "stages": {
                name: {"summary": summarise(members), "by_searches": accuracy_by_searches(members)}
                for name, members in stages.items()
            },
        }

    def flush(self) -> None:
        """Close the block."""
        if self._waiting:
            text = json.dumps(self._waiting, separators=(",", ":"))
            self.blocks.append(gzip.compress(text.encode(), compresslevel=9, mtime=0))
            self._waiting = []

    def _row(self, run: int, episode: Episode, answer: str | None, diagnosis: Diagnosis) -> None:
        task, trajectory = episode.task, episode.trajectory
        key = (task.id, task.question, task.golden_answers)
        self.questions.setdefault(key, task)
        oldest = trajectory.oldest_version()
        row = {
            "run": run,
            "stage": self._name("stage", episode.stage),
            "step": episode.step,
            "question": self._numbers.setdefault(key, len(self._numbers)),
            "sample": trajectory.sample,
            "outcome": self._name("outcome", trajectory.outcome or "unfinished"),
            "reward": _rounded(trajectory.reward),
            "answer": None if answer is None else self._name("answer", answer),
            "searches": len(diagnosis.searches),
            "turns": trajectory.num_turns,
            "tokens": len(trajectory),
            "right": None if diagnosis.aborted else int(diagnosis.right),
            "staleness": None if oldest is None or episode.stage != "train" else episode.step - 1 - oldest,
            "evidence": _rounded(diagnosis.evidence),
            "verdict": self._name("verdict", diagnosis.verdict),
            "credit": None,
        }
        place = len(self.columns["run"])
        for name, value in row.items():
            self.columns[name].append(value)
        for name, value in trajectory.reward_parts.items():
            self.parts.setdefault(name, [None] * place).append(_rounded(value))
        for column in self.parts.values():
            column.extend([None] * (place + 1 - len(column)))

    def _name(self, column: str, value: str) -> int:
        return self.names[column].setdefault(value, len(self.names[column]))

    def _credit(self, first: int) -> None:
        """Reward above the mean of the group: what a group baseline pays an episode for, before any scaling."""
        groups: dict[tuple[int, ...], list[int]] = {}
        keys = [self.columns[name][first:] for name in ("stage", "step", "question")]
        for offset, key in enumerate(zip(*keys, strict=True)):
            if self.columns["reward"][first + offset] is not None:
                groups.setdefault(key, []).append(first + offset)
        for members in groups.values():
            mean = fmean(self.columns["reward"][place] for place in members)
            for place in members if len(members) > 1 else ():
                self.columns["credit"][place] = _rounded(self.columns["reward"][place] - mean)


def _right(episode: Episode, answer: str | None) -> bool:
    """As the reward measured it; a reward of somebody's own that does not is judged by exact match."""
    measured = episode.trajectory.reward_parts.get("em")
    return (exact_match(answer or "", episode.task.golden_answers) if measured is None else measured) == 1


def _question(task: Task) -> list[Any]:
    return [task.id, task.question, list(task.golden_answers), [str(i) for i in task.metadata.get(EVIDENCE) or ()]]


def _episode(trajectory: Trajectory, protocol: SearchProtocol, pieces: Pieces) -> list[Any]:
    """Reason, gains of turns, segments."""
    gains = None if trajectory.turn_gains is None else [_rounded(gain) for gain in trajectory.turn_gains]
    return [trajectory.reason, gains, [_segment(segment, protocol, pieces) for segment in trajectory.segments]]


def _segment(segment: Segment, protocol: SearchProtocol, pieces: Pieces) -> dict[str, Any]:
    text = segment.text
    record: dict[str, Any] = {"k": segment.kind[0], "u": segment.turn, "n": len(segment), "t": text}
    if segment.is_policy:
        known = bool(np.isfinite(segment.logprobs).all())  # a served model need not say how likely its tokens were
        versions = sorted({int(version) for version in segment.versions})
        record |= {
            "f": segment.finish_reason,
            "v": versions[:1] + versions[-1:] if len(versions) > 1 else versions,
            # Hundredths of a nat: finer than a shade can show.
            "l": [round(-100 * value) for value in segment.logprobs.tolist()] if known else [],
            "p": pieces.lengths(segment.token_ids.tolist(), text) if known else None,
            "x": [
                [span.kind, utf16_length(text[: span.begin]), utf16_length(text[: span.end])]
                for span in protocol.spans(text)
            ],
        }
    if segment.calls:
        record["c"] = [_call(call) for call in segment.calls]
        record["o"] = passage_bounds(text, [result for call in segment.calls for result in call.results], protocol)
    return record


def _call(call: ToolCall) -> list[Any]:
    """Tool, request, milliseconds, cached, failure, results."""
    results = [[result.id, _rounded(result.score), result.title] for result in call.results]
    return [call.tool, call.request, round(1000 * call.latency_s, 2), int(call.cached), call.failure, results]


def _rounded(value: float | None) -> float | None:
    if value is None or value != value or abs(value) == float("inf"):
        return None
    short = round(value, 4)
    return int(short) if short == int(short) else short
