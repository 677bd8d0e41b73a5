"""The runs of a grid: each combination of the swept values, its configuration and its folder."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search_agent.config import RunConfig
from search_agent.console.command import NOT_RESULTS, load_config, results_config
from verl.config.compose import expand_grid, last_value, to_yaml
from verl.errors import UserError, noted, refuse

RUNS = Path("runs")


@dataclass(frozen=True)
class Member:
    """One run of a grid."""

    overrides: tuple[str, ...]
    """What the run is trained with, ``run_dir`` apart."""
    swept: tuple[str, ...]
    """The overrides that differ between members."""
    folder: Path
    config: RunConfig

    @property
    def setting(self) -> str:
        """The swept overrides but for the seed: members of one setting are repetitions of each other."""
        return " ".join(override for override in self.swept if not override.startswith("seed=")) or "(all)"

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "summary.json").exists()

    def check_same(self) -> None:
        """Raises UserError if a finished run's results are of another configuration: a preset was changed since."""
        recorded = self.folder / "config.yaml"
        if recorded.exists() and recorded.read_text() != to_yaml(results_config(self.config)):
            raise UserError(
                f"{self.folder} is finished, but under another configuration (see its config.yaml; was a preset "
                "changed since?): write fresh=true to make the grid anew, or run_dir= for another one"
            )


def plan_grid(arguments: Sequence[str], runs: Path = RUNS) -> tuple[Path, list[Member]]:
    """The grid's folder and its runs in order. Raises UserError with every fault of every combination."""
    named = last_value(arguments, "run_dir")
    kept = [argument for argument in arguments if not argument.startswith("run_dir=")]
    telling = [argument for argument in kept if re.split(r"[.=]", argument)[0] not in NOT_RESULTS]
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:12]
    folder = Path(named) if named else runs / f"grid-{digest}"
    combinations = expand_grid(kept)
    fixed = set(kept)
    members = []
    faults: list[str] = []
    for overrides in combinations:
        swept = tuple(override for override in overrides if override not in fixed)
        with noted(faults):
            config = load_config(overrides)
            members.append(Member(tuple(overrides), swept, folder / _folder_name(swept), config))
    repeated = [swept for swept, count in Counter(member.swept for member in members).items() if count > 1]
    faults += [f"{' '.join(swept)}: stands in the grid more than once; write each value once" for swept in repeated]
    refuse(faults)
    return folder, members


def _folder_name(swept: Sequence[str]) -> str:
    """Readable, safe as a file name, and different for different settings."""
    if not swept:
        return "run"
    text = re.sub(r"[^\w=.,-]+", "_", ",".join(swept))
    digest = hashlib.sha256("\n".join(swept).encode()).hexdigest()[:6]
    return text if len(text) <= 80 and text == ",".join(swept) else f"{text[:80]}-{digest}"
