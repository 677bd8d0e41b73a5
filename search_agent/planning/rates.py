"""Measured rates of a card, from ``docs/results/rates.yaml``: what a prediction multiplies. Imports no torch.

The table holds measurements alone, each with card, date and source; ``bench/gpu`` makes them. A rate that was not
measured is null, and what needs it is not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl.config.build import build
from verl.errors import UserError, require

TABLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "rates.yaml"


@dataclass(frozen=True)
class PredictionConfig:
    """What ``dry_run=true`` is told so that it can say how long a run takes and what it costs; a run reads none."""

    card: str | None = None
    """The GPU's name in ``docs/results/rates.yaml`` (``H200``). Null predicts nothing for GPUs; a run without takes the
    table's ``CPU``, a machine of two cores."""
    policy_tokens: int | None = None
    """Tokens that the policy writes in an episode, in the mean. Null takes the most that the bounds allow, and the
    prediction is then one of the longest run."""
    episode_tokens: int | None = None
    """All tokens of an episode, prompt and observations included, in the mean. Null as above."""
    longest_tokens: int | None = None
    """Tokens that the policy writes in the longest episode of a step: the engine steps at least so often. Null as
    above."""
    turns: float | None = None
    """Turns of an episode, in the mean; null takes the most that the environment allows."""
    wait_s: float | None = None
    """Seconds that the episode which waits the most for its searches waits for all of them; null takes none."""
    trained_share: float | None = None
    """The share of a step's episodes that is trained on, where uniform groups are dropped; null takes all."""
    price_per_gpu_hour: float | None = None
    """What a GPU costs an hour, in any currency; null predicts no cost."""

    def __post_init__(self) -> None:
        for keys, least, most in (
            (("policy_tokens", "episode_tokens", "longest_tokens", "turns"), 1.0, math.inf),
            (("wait_s", "price_per_gpu_hour"), 0.0, math.inf),
            (("trained_share",), 0.0, 1.0),
        ):
            bounds = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
            for key in keys:
                value = getattr(self, key)
                holds = value is None or (least <= value <= most and value < math.inf)
                require(holds, f"prediction.{key}", value, f"write {bounds}, or null")
        for more, why in (("episode_tokens", "counts them too"), ("longest_tokens", "is the most of any episode")):
            written, whole = self.policy_tokens, getattr(self, more)
            if written is not None and whole is not None and written > whole:
                raise UserError(f"prediction.policy_tokens={written} is above prediction.{more}={whole}, which {why}")


@dataclass(frozen=True)
class Rates:
    """One row: what one card did, and with which model, from which another's times are scaled."""

    card: str
    """Its name, as in ``prediction.card``."""
    date: str
    """When (year-month-day)."""
    commit: str
    """With which code."""
    source: str
    """What was run, and where it is recorded."""
    parameters: float
    """Of the model that the engine ran."""
    step_s: float | None = None
    """A decoding step of the engine (s), whatever is in it ..."""
    request_s: float = 0.0
    """... and more for each request in it (s)."""
    requests: int | None = None
    """Where only one size was measured: the requests in it. More take longer in proportion."""
    host_share: float = 0.0
    """Of such a step, what the host takes (vLLM's scheduler), whatever the model ..."""
    device_share: float = 1.0
    """... and what the card takes, of the measured model: they work at the same time, and the longer one counts."""
    read_s: float = 0.0
    """For each token of a prompt or an observation that is read (s)."""
    turn_s: float = 0.0
    """For each turn of an episode besides (s): to take a request in and to give it back, and what the environment does
    with it meanwhile in the same process. Not scaled to another model."""
    learn_tflops: float | None = None
    """The learner's formula TFLOP/s on one rank."""
    sync_gib_per_s: Mapping[str, float] = field(default_factory=dict)
    """Weights to an engine, by ``rollout.engine.weight_transfer`` ..."""
    push_s: float = 0.0
    """... and what a push takes however little is in it (s). Not scaled to another model."""

    def decode_s(self, requests: float) -> float:
        """A decoding step of so many requests, of the measured model (s). Needs ``step_s``."""
        assert self.step_s is not None
        beyond = max(1.0, requests / self.requests) if self.requests else 1.0
        return (self.step_s + self.request_s * requests) * beyond

    def slower(self, scale: float) -> float:
        """How many times as long a decoding step takes where a card has so many times the measured model's weights."""
        return max(self.host_share, self.device_share * scale)


def read_rates(path: Path = TABLE) -> list[Rates]:
    """All rows; none where the table is not there (an installed package has no ``docs``)."""
    import yaml

    if not path.exists():
        return []
    rows: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [build(Rates, row) for row in rows]


def rates_of(card: str, table: list[Rates]) -> Rates | None:
    """The newest row of this card, by any writing of its name."""
    rows = [row for row in table if row.card.casefold() == card.casefold()]
    return max(rows, key=lambda row: row.date, default=None)
