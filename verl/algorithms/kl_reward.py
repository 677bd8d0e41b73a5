"""The coefficient of the KL to the reference model inside the reward: fixed or adaptive."""

from __future__ import annotations

from verl.algorithms.control_config import KlRewardConfig

MAX_ERROR = 0.2
"""The adaptive controller treats a KL that is off by more than 20 % as off by 20 % (Ziegler et al. 2019)."""


def next_coefficient(coefficient: float, kl: float, sequences: int, config: KlRewardConfig) -> float:
    """The coefficient of the next step, from ``kl`` in nats a policy token over the ``sequences`` of this one.

    Adaptive: coefficient (1 + clip(kl / target - 1) min(1, sequences / horizon)): a step longer than the horizon counts
    as one horizon, or the coefficient could turn negative. It is the controller's whole state: save it
    with the run, or a resumed run starts again from ``config.coefficient``.
    """
    if config.controller == "fixed":
        return config.coefficient
    error = max(-MAX_ERROR, min(MAX_ERROR, kl / config.target - 1.0))
    return coefficient * (1.0 + error * min(1.0, sequences / config.horizon_sequences))
