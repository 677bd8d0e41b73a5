"""Data plug-in: the embedded world, built once for each seed and kept beside the runs."""

from __future__ import annotations

from pathlib import Path

from preprocess.embedded.build import WORLD_VERSION, StyledSizes, WorldPaths, build_once, build_world
from preprocess.embedded.build import Config as WorldConfig
from search_agent.data.source import Source, Split
from verl.config.build import to_dict

Config = StyledSizes


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Build the world unless it stands in ``out`` already; a folder without its manifest is built again."""
    folder = out / f"embedded-v{WORLD_VERSION}-{config.style}-{seed}-{config.name}"
    paths = WorldPaths.under(folder)
    world = WorldConfig(out=str(folder), seed=seed, **to_dict(config))
    build_once(paths.manifest, lambda: build_world(world))
    return Source(
        train=Split(paths.train, paths.corpus),
        dev=Split(paths.dev, paths.dev_corpus),
        test=Split(paths.clean_test, paths.clean_corpus),
        model=paths.model,
        traces=paths.traces,
    )
