"""Data plug-in: the embedded world, built once for each seed and kept beside the runs."""

from __future__ import annotations

from pathlib import Path

from preprocess.embedded.build import MANIFEST, WORLD_VERSION, StyledSizes, build_once, build_world
from preprocess.embedded.build import Config as WorldConfig
from search_agent.data.source import Source, Split
from verl.config.build import to_dict

Config = StyledSizes


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Build the world unless it stands in ``out`` already; a folder without its manifest is built again."""
    root = out / f"embedded-v{WORLD_VERSION}-{config.style}-{seed}-{config.name}"
    world = WorldConfig(out=str(root), seed=seed, **to_dict(config))
    build_once(root / MANIFEST, lambda: build_world(world))
    return Source(
        train=Split(root / "train.jsonl", root / "corpus.jsonl"),
        dev=Split(root / "dev" / "dev.jsonl", root / "dev" / "corpus.jsonl"),
        test=Split(root / "clean" / "test.jsonl", root / "clean" / "corpus.jsonl"),
        model=root / "model",
        traces=root / "traces.jsonl",
    )
