"""What a data plug-in gives a run: files of tasks, a corpus for each, and what the warm-up needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from verl.data.load import load_tasks
from verl.data.tasks import Task


@dataclass(frozen=True)
class Split:
    """Tasks, and the corpus that the embedded retriever serves while they are played."""

    tasks: Path
    corpus: Path | None = None
    """None where the retriever is a URL."""
    prompts: bool = False
    """Whether the column ``prompt`` of the tasks opens their episodes as it stands."""

    def load(self) -> list[Task]:
        """Read the tasks. Raises UserError with all faults of the file."""
        return load_tasks(self.tasks, prompts=self.prompts)


@dataclass(frozen=True)
class Source:
    """Everything that a run reads."""

    train: Split
    dev: Split
    """What choices are tuned on, the choice of the best checkpoint included."""
    test: Split
    """What is reported."""
    model: Path | None = None
    """The model made with the data, for ``model=embedded``."""
    traces: Path | None = None
    """Recorded trajectories for the warm-up, one JSON object a line."""
    traces_fraction: float = 1.0
    """Share of them that is learned from."""
    server: tuple[str, ...] = ()
    """How ``retriever=embedded`` is to serve the corpora where BM25 is not the way: ``key=value`` arguments."""

    @property
    def splits(self) -> dict[str, Split]:
        """By the name that episodes carry."""
        return {"train": self.train, "dev": self.dev, "test": self.test}
