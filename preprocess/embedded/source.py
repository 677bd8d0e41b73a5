"""Data plug-in: the embedded world, built once for each seed and kept beside the runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preprocess.embedded.build import WORLD_VERSION, WorldPaths, build_world
from preprocess.embedded.build import Config as WorldConfig
from preprocess.embedded.styles import StyleName
from search_agent.data.source import Source, Split
from search_agent.retrieval.index.index_files import exclusive
from verl.errors import UserError


@dataclass(frozen=True)
class Config:
    """Sizes of the embedded world."""

    style: StyleName = "autorefine"
    """The protocol that warm-up traces are written in; keep it that of ``protocol``, with ``instruction: short``."""
    dev_questions: int = 200
    """Questions over the dev world: enough to choose by, few enough to ask every few steps."""
    test_questions: int = 600
    """Questions over the clean test world: a 95 % interval of 4 points to each side at the widest."""
    traces: int = 9000
    """Warm-up traces: 900 steps of 32 see each one three times or so."""

    def __post_init__(self) -> None:
        for key in ("dev_questions", "test_questions", "traces"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: write 1 or more")


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Build the world unless it stands in ``out`` already; a folder without its manifest is built again.

    One process builds, others wait for it: runs of a grid begin together.
    """
    sizes = f"{config.dev_questions}-{config.test_questions}-{config.traces}"
    folder = out / f"embedded-v{WORLD_VERSION}-{config.style}-{seed}-{sizes}"
    paths = WorldPaths.under(folder)
    world = WorldConfig(
        out=str(folder),
        seed=seed,
        style=config.style,
        dev_questions=config.dev_questions,
        test_questions=config.test_questions,
        traces=config.traces,
    )
    if not paths.manifest.exists():  # a finished world may stand where nothing can be written
        with exclusive(folder, key="", remedy="run it from a folder that can be written"):
            if not paths.manifest.exists():
                build_world(world)
    return Source(
        train=Split(paths.train, paths.corpus),
        dev=Split(paths.dev, paths.dev_corpus),
        test=Split(paths.clean_test, paths.clean_corpus),
        model=paths.model,
        traces=paths.traces,
    )
