"""Credit turn by turn: what each turn brought (for search: new evidence), compared with the group at the same turn."""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.advantages import differs
from verl.algorithms.config import TurnCreditConfig
from verl.algorithms.gae import discounted_returns


def turn_advantages(gains: Tensor, sequence: Tensor, turn: Tensor, groups: Tensor, config: TurnCreditConfig) -> Tensor:
    """One advantage a turn, ``[m]``, to add to the advantage of every policy token of the turn.

    ``gains [m]`` is what each turn brought by itself (new gold passages over all gold passages, say), ``sequence
    [m]`` its sequence (turns contiguous and in order), ``turn [m]`` its index within it, ``groups [m]`` its task. A
    turn's return is the discounted sum of gains from it onwards; its advantage is coefficient x (return - mean return
    of the group's other and own samples at the same turn index). A turn that no sibling reached, or whose siblings have
    all the same return, has nothing to compare and gets exactly 0. Turn-level credit with a group baseline: Zeng et al.
    2025 (arXiv 2505.11821), Feng et al. 2025 (arXiv 2505.10978).
    """
    returns = discounted_returns(gains.double(), sequence, config.gamma)
    place = torch.unique(torch.stack([groups, turn], dim=1), dim=0, return_inverse=True)[1]
    cells = int(place.max()) + 1 if len(place) else 0
    total = returns.new_zeros(cells).index_add(0, place, returns)
    count = returns.new_zeros(cells).index_add(0, place, torch.ones_like(returns))
    return (config.coefficient * (returns - (total / count)[place]) * differs(returns, place)).to(gains.dtype)
