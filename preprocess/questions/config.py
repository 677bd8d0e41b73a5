"""What to build, from which question sets. Standard library only, so that a mistake is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_agent.data.benchmark import QUESTIONS
from verl.errors import UserError, at_least


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.questions``."""

    source: str = "data/flashrag"
    """Folder with ``<set>/<split>.jsonl`` or ``<set>/<split>*.parquet``: where ``preprocess.download`` puts them."""
    out: str = "data/nq_hotpotqa_train_autorefine"
    """Folder to write to; made if it is not there."""
    train: tuple[str, ...] = ("nq", "hotpotqa")
    """Sets whose training questions are merged; the published choice of AutoRefine and Search-R1."""
    test: tuple[str, ...] = QUESTIONS
    """Sets that are reported, each by its first split of test, dev, train; the seven published ones."""
    protocol: str = "search_agent.protocols.autorefine"
    """Plug-in whose prompt, with its default settings, is rendered into the column ``prompt``."""
    valid_per_set: int = 500
    """Validation questions a set, at most; 500 as published. 0 writes no validation file."""
    valid_from: Literal["held_out", "test"] = "held_out"
    """``held_out`` takes validation questions from splits that are not tested on, and out of training, so that choosing
    a checkpoint never sees the test set; ``test`` draws them from the test set as AutoRefine published."""
    seed: int = 42
    """Draws the validation questions, and shuffles the training and the validation file; 42 as published."""

    def __post_init__(self) -> None:
        at_least(self, 0, "valid_per_set")
        for key in ("train", "test"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise UserError(f"{key} is {list(names)}: name at least one set, and none twice")
