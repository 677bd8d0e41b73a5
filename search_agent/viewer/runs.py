"""What the viewer reads of a run: curves, saved episodes with their questions, the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_agent.evaluation.reading import protocol_of
from search_agent.protocols.base import SearchProtocol
from search_agent.viewer.pieces import Decoder, open_tokenizer
from verl.config.compose import from_yaml
from verl.rollout.episodes import Episode, episode_files, read_episodes
from verl.tracking.jsonl import read_metrics


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    curves: dict[str, list[list[float]]]
    """Metric to ``[steps, values]``."""
    episodes: Iterable[Episode]
    protocol: SearchProtocol
    """What reads the episodes."""
    decoder: Decoder | None
    """What spells their tokens, where it is at hand."""


def names_of(paths: Sequence[Path]) -> list[str]:
    """What the folders are called: their last part, with as many of those before it as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depths = range(1, max(map(len, parts)))
    depth = next((depth for depth in depths if len({own[-depth:] for own in parts}) == len(set(parts))), 1)
    return ["/".join(own[-depth:]) for own in parts]


def read_run(path: Path, name: str = "") -> Run:
    """Open a run folder. Raises UserError if it holds no episodes; the episodes are read when they are asked for."""
    files = episode_files(path)
    metrics = path / "metrics.jsonl"
    return Run(
        name=name or path.resolve().name,
        curves=curves(read_metrics(metrics) if metrics.exists() else []),
        episodes=(episode for file in sorted(files, key=_order) for episode in read_episodes(file)),
        protocol=protocol_of(path),
        decoder=open_tokenizer(_tokenizer(path)),
    )


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Every metric as ``[steps, values]``; what is not a number is left out.

    Steps are counted from the end of the warm-up, so that runs with different ones lie on each other; those of the
    warm-up's own metrics from its begin.
    """
    warmed = max((row["step"] for row in rows if any(name.startswith("warmup/") for name in row)), default=0)
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                steps, values = found.setdefault(name, [[], []])
                steps.append(row["step"] - (0 if name.startswith("warmup/") else warmed))
                values.append(float(f"{value:.5g}"))
    return found


def _tokenizer(path: Path) -> Path | None:
    config = path / "config.yaml"
    played = [Path(str(from_yaml(config).get("model", "")))] if config.is_file() else []
    folders = [path / "best_dev", *played, *sorted((path / "checkpoints").glob("step_*/hf"), reverse=True)]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)


def _order(file: Path) -> tuple[int, str]:
    """In the order of a run's life: before training, training, after."""
    stage = file.name.rpartition("_")[0]
    return 0 if "before" in stage else 1 if stage == "train" else 2, file.name
