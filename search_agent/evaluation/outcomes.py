"""Saved episodes as scores by question: what reports and comparisons are made of.

The denominator is fixed: an episode that infrastructure ended counts as wrong, and how many did is told beside. Answers
are scored from the text, by one scorer, so that runs with different rewards can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from search_agent.evaluation.diagnostics import Diagnosis, diagnose
from search_agent.evaluation.metrics import AnswerScores, score_answer
from search_agent.evaluation.reading import protocol_of
from search_agent.protocols.base import SearchProtocol
from search_agent.rewards.text import normalise
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode, episode_files, read_episodes, stage_and_step

SCORES = AnswerScores._fields
_PREFERRED = ("test-after-greedy", "eval-greedy")
"""What is meant by a run's result where no stage is named."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode of a question."""

    scores: Mapping[str, float]
    """``em``, ``f1``, ``precision``, ``recall``, ``acc``; all 0 without an answer."""
    answer: str | None
    """Normalised."""
    diagnosis: Diagnosis

    @property
    def failed(self) -> bool:
        """Whether infrastructure ended it."""
        return self.diagnosis.aborted


@dataclass(frozen=True)
class Outcomes:
    """One stage of one run: every question with its samples."""

    name: str
    stage: str
    tasks: dict[str, Task] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Episodes that infrastructure ended."""
        return sum(sample.failed for members in self.samples.values() for sample in members)

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """Of every episode."""
        return [sample.diagnosis for members in self.samples.values() for sample in members]

    def means(self, score: str, questions: Iterable[str]) -> list[float]:
        """The mean over each question's samples: questions are independent of each other, samples of one are not."""
        return [fmean(sample.scores[score] for sample in self.samples[question]) for question in questions]

    def sets(self) -> dict[str, list[str]]:
        """Questions by the data set that they come from; one set without a name where rows do not say."""
        found: dict[str, list[str]] = {}
        for identifier, task in self.tasks.items():
            found.setdefault(str(task.metadata.get("data_source") or ""), []).append(identifier)
        return found


def read_outcomes(run: Path, stage: str | None = None) -> Outcomes:
    """Score one stage of a run folder, at its newest step, or one file of episodes.

    Raises UserError where there are no such episodes, or where they do not say what the right answers are.
    """
    file = run if run.is_file() else file_of(run, stage)
    folder = run.resolve().parent.parent if run.is_file() else run.resolve()
    protocol = protocol_of(folder)
    outcomes = Outcomes(folder.name, stage_and_step(file)[0])
    for episode in read_episodes(file):
        add(outcomes, episode, protocol)
    if not outcomes.tasks:
        raise UserError(f"{file}: holds no episodes: nothing to score")
    return outcomes


def add(outcomes: Outcomes, episode: Episode, protocol: SearchProtocol) -> None:
    """Score one episode. Raises UserError if its record has no accepted answer."""
    task = episode.task
    outcomes.tasks.setdefault(task.id, task)
    outcomes.samples.setdefault(task.id, []).append(score(episode, protocol))


def score(episode: Episode, protocol: SearchProtocol) -> Sample:
    """Read an episode's answer and score it; what infrastructure ended has none.

    Raises UserError if its record has no accepted answer.
    """
    if not episode.task.golden_answers:
        raise UserError(
            f"{episode.stage}: task {episode.task.id} was saved without its accepted answers (by an earlier version, "
            "or for a question without any): play the evaluation again"
        )
    reading = protocol.read(episode.trajectory)
    answer = None if episode.trajectory.outcome == "aborted" else reading.answer
    scores = AnswerScores(0, 0, 0, 0, 0) if answer is None else score_answer(answer, episode.task.golden_answers)
    return Sample(
        scores._asdict(),
        None if answer is None else normalise(answer),
        diagnose(episode.task, episode.trajectory, reading, right=scores.em == 1),
    )


def stages_of(run: Path) -> dict[str, Path]:
    """Each stage's file of its newest step. Raises UserError if the folder holds no episodes."""
    return {stage: file for file in episode_files(run) for stage in (stage_and_step(file)[0],)}


def file_of(run: Path, stage: str | None) -> Path:
    """The file of a stage's newest step; without a name, of the run's result. Raises UserError if there is none."""
    stages = stages_of(run)
    wanted = stage or next(name for name in (*_PREFERRED, *stages) if name in stages)
    if wanted not in stages:
        raise UserError(f"{run}: no stage {wanted}; there are: {', '.join(stages)}")
    return stages[wanted]
