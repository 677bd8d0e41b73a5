"""One run, one folder: everything a run leaves, and everything a killed run needs to go on.

    config.yaml  metrics.jsonl  summary.json  curves.png  logs/
    recomputed.json                  how many layers the learner computes again, where the plan has chosen it
    trajectories/<stage>_<step>.jsonl.gz
    trained.jsonl                    which groups each step took, and how old their tokens were
    checkpoints/step_<n>/            written under another name, then renamed: a folder of this name is complete
        files.json                   sizes and checksums: a damaged checkpoint is not loaded
        loop.json                    where the loop stands (step, buffer, best so far, seconds)
        learner/                     weights, optimizer, random states (torch DCP)
        hf/                          the same weights for transformers and vLLM, where dev was evaluated
    best_dev, best_reward            links to the hf folder of a checkpoint

A run is finished when ``summary.json`` exists.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from verl.durable import UNFINISHED, sync, write_atomically
from verl.errors import InfrastructureError, UserError
from verl.rollout.episodes import ENDING, Episode, read_episodes, write_episodes
from verl.trainer.integrity import SEAL, find_damage, make_seal
from verl.trajectory import Trajectory

RECOMPUTED = "recomputed.json"
"""How many layers a resumed run has to compute again."""
FULL_BYTES = 16 << 20
"""Below this a disk counts as full: an error then is most likely its consequence, whatever it calls itself."""


class RunFolder:
    """Paths and atomic writes of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.trajectories = path / "trajectories"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.config = path / "config.yaml"

    @classmethod
    def open(cls, path: Path, config_yaml: str, *, fresh: bool) -> RunFolder:
        """Create the folder, or take up what stands there. Raises UserError if it belongs to another configuration."""
        folder = cls(path)
        if fresh and path.exists():
            if not folder.is_run and any(path.iterdir()):
                raise UserError(f"run_dir={path} holds files but no run: fresh=true deletes only run folders")
            shutil.rmtree(path)
        if folder.config.exists() and (recorded := folder.config.read_text()) != config_yaml:
            if folder.resumable() and _grows(recorded, config_yaml):
                for name in ("summary.json", "after.json", "curves.png"):  # before the configuration: killed between
                    (path / name).unlink(missing_ok=True)  # the two, the run is still the shorter one
            elif folder.begun or not folder.is_run:
                raise UserError(
                    f"run_dir={path} belongs to a run of another configuration (see its config.yaml): "
                    "choose another run_dir, or write fresh=true to delete it; trainer.steps alone may grow"
                )
            else:  # a start that failed: a mistake that was mended must not need another folder
                for name in ("retriever.json", RECOMPUTED, "wandb_id"):
                    (path / name).unlink(missing_ok=True)
        for directory in (path, *folder._parts):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.config, config_yaml)
        for leftover in [left for place in (path, *folder._parts) for left in place.glob(f"*{UNFINISHED}")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return folder

    def finished_as(self, config_yaml: str) -> bool:
        """Whether a run of this configuration, and not of a shorter one, is finished here."""
        return (self.path / "summary.json").exists() and self.config.read_text() == config_yaml

    @property
    def _parts(self) -> tuple[Path, ...]:
        return self.logs, self.trajectories, self.checkpoints

    @property
    def is_run(self) -> bool:
        """Whether this is a run's folder, and not a project of the user's that has a config.yaml too."""
        return self.config.exists() and all(part.is_dir() for part in self._parts)

    @property
    def begun(self) -> bool:
        """Whether there is anything of a run here, besides its configuration and the logs of its start."""
        results = (self.metrics, *self.path.glob("*.json"), *self.trajectories.glob("*"), *self.checkpoints.glob("*"))
        return any(path.exists() and path.name not in ("driver.json", "retriever.json", RECOMPUTED) for path in results)

    # -- small files --

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this folder, or None if it does not exist."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file so that it is either the old or the new one, whole."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    # -- checkpoints --

    def checkpoint(self, step: int) -> Path:
        """Where the complete checkpoint of a step stands, if there is one."""
        return self.checkpoints / f"step_{step:06d}"

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder to write a checkpoint into; ``commit_checkpoint`` makes it one."""
        path = self.checkpoint(step).with_suffix(UNFINISHED)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def commit_checkpoint(self, path: Path, loop: dict[str, Any]) -> Path:
        """Add the loop's state, make all of it durable, and give it its final name."""
        write_atomically(path / "loop.json", json.dumps(loop, indent=1) + "\n")
        write_atomically(path / SEAL, make_seal(path))
        for file in path.rglob("*"):
            if file.is_file():
                sync(file)
        final = path.with_name(path.name.removesuffix(UNFINISHED))
        shutil.rmtree(final, ignore_errors=True)
        path.rename(final)
        sync(final.parent)
        return final

    def resumable(self) -> list[Path]:
        """Checkpoints that training can go on from, oldest first."""
        return [path for path in self._steps() if (path / "learner").is_dir()]

    def set_damaged_aside(self) -> list[str]:
        """Rename damaged checkpoints until the newest one is whole; says of each what is wrong and what follows.

        Raises UserError if there are checkpoints and none is whole: a start from nothing is the user's to decide.
        """
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self.resumable()):
            fault = find_damage(path)
            if fault is None:
                for broken, _ in damaged:
                    broken.rename(broken.with_name(f"damaged_{broken.name}"))
                return [f"checkpoint {broken} is damaged ({why}): going on from {path.name}" for broken, why in damaged]
            damaged.append((path, fault))
        if damaged:
            told = "; ".join(f"{path.name}: {why}" for path, why in damaged)
            raise UserError(
                f"run_dir={self.path}: no checkpoint is whole ({told}): put back a copy of one, or write fresh=true "
                "to start anew"
            )
        return []

    def explain(self, error: Exception) -> InfrastructureError | None:
        """What a failure to write means where the disk of this folder is full; None for any other failure."""
        free = shutil.disk_usage(self.path).free
        if not _is_out_of_space(error) and (free >= FULL_BYTES or isinstance(error, UserError)):
            return None
        return InfrastructureError(
            f"run_dir={self.path}: its disk is full ({free >> 20} MiB free): free some, and run the same command to go "
            "on from the last checkpoint"
        )

    def link(self, name: str, checkpoint: Path) -> None:
        """Point ``best_dev`` or ``best_reward`` at a checkpoint's Hugging Face folder."""
        link = self.path / f"{name}{UNFINISHED}"
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(checkpoint / "hf", self.path))
        link.replace(self.path / name)

    def retain(self, newest: int) -> None:
        """Keep the newest resumable checkpoints, and of the others only the weights that a link points to."""
        linked = {link.resolve().parent for link in self.path.iterdir() if link.is_symlink()}
        kept = {path.resolve() for path in self.resumable()[-newest:]}
        for path in self._steps():
            if path.resolve() in kept:
                continue
            if path.resolve() in linked:
                shutil.rmtree(path / "learner", ignore_errors=True)
            else:
                shutil.rmtree(path)

    def _steps(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step_*") if p.is_dir() and not p.name.endswith(UNFINISHED))

    # -- trajectories --

    def write_trajectories(self, stage: str, step: int, episodes: Iterable[Episode], *, keep: int) -> None:
        """Write one step's episodes, and delete those of the stage beyond the newest ``keep`` steps."""
        path = self._episodes(stage, step)
        temporary = path.with_name(path.name + UNFINISHED)
        write_episodes(temporary, episodes)
        temporary.replace(path)
        for old in sorted(self.trajectories.glob(f"{stage}_*{ENDING}"))[:-keep] if keep else [path]:
            old.unlink()

    def read_trajectories(self, stage: str, step: int) -> Iterator[Trajectory]:
        """What was played in the episodes that ``write_trajectories`` wrote."""
        return (episode.trajectory for episode in read_episodes(self._episodes(stage, step)))

    def _episodes(self, stage: str, step: int) -> Path:
        return self.trajectories / f"{stage}_{step:06d}{ENDING}"

    def disk_bytes(self) -> int:
        """What the folder takes on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file() and not file.is_symlink())


def _grows(recorded: str, config_yaml: str) -> bool:
    """Whether the second configuration is the first with more reinforcement steps and nothing else changed."""
    before, after = yaml.safe_load(recorded), yaml.safe_load(config_yaml)
    try:
        longer = after["trainer"]["steps"] > before["trainer"]["steps"]
        before["trainer"]["steps"] = after["trainer"]["steps"]
    except (KeyError, TypeError):
        return False
    return bool(longer and before == after)


def _is_out_of_space(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_out_of_space, error.exceptions))
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
