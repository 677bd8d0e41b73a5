"""Decides which question goes where. Pure: questions in, questions out.

Invariant: no question of the test file stands in the validation file (unless that is asked for) or in the training
file, and none of the validation file in the training file; sameness is that of ``Question.key``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from preprocess.questions.read import Dropped, Question
from verl.seeds import derive_seed


@dataclass(slots=True)
class Files:
    """The questions of each file, in order, and what was left out of all of them."""

    train: list[Question] = field(default_factory=list)
    valid: list[Question] = field(default_factory=list)
    test: list[Question] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the counts should know: sets that could give no validation questions."""


def divide(
    train: Sequence[Sequence[Question]],
    valid: Sequence[Sequence[Question]],
    test: Sequence[Sequence[Question]],
    *,
    valid_per_set: int,
    valid_is_test: bool,
    seed: int,
) -> Files:
    """Each argument holds one list of candidates a set; training and validation questions are merged and shuffled.

    So the first rows of either file are a sample of all its sets.
    """
    files = Files(test=[question for questions in test for question in questions])
    tested = {question.key for question in files.test}
    for candidates in valid:
        free = candidates if valid_is_test else _without(candidates, tested, "the test file", files.dropped)
        files.valid += _sample(free, valid_per_set, seed)
    random.Random(derive_seed(seed, "validation order")).shuffle(files.valid)
    validated = set() if valid_is_test else {question.key for question in files.valid}
    for candidates in train:
        free = _without(candidates, tested, "the test file", files.dropped)
        files.train += _without(free, validated, "the validation file", files.dropped)
    random.Random(derive_seed(seed, "training order")).shuffle(files.train)
    return files


def _sample(candidates: Sequence[Question], count: int, seed: int) -> list[Question]:
    if len(candidates) <= count:
        return list(candidates)
    rng = random.Random(derive_seed(seed, "validation", candidates[0].set))
    return [candidates[index] for index in sorted(rng.sample(range(len(candidates)), count))]


def _without(
    candidates: Sequence[Question], taken: Collection[str], where: str, dropped: list[Dropped]
) -> list[Question]:
    kept: list[Question] = []
    for question in candidates:
        if question.key in taken:
            dropped.append(Dropped(question.set, question.split, question.row, f"stands in {where}"))
        else:
            kept.append(question)
    return kept
