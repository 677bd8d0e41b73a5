"""What an evaluation found, as ``summary.json`` says it: exact match, by hop count, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search_agent.evaluation.statistics import wilson
from verl.rollout.groups import Group
from verl.trainer.summary import summarize

_HOPS = {1: "one_hop", 2: "two_hop", 3: "three_hop", 4: "four_hop"}


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    """Means over the episodes that infrastructure did not end; ``aborted`` counts the others.

    ``em`` and, where tasks say their ``hops``, ``em_one_hop``, ``em_two_hop`` ... each with ``<name>_interval``
    (Wilson, 95 %) and ``<name>_n``; ``format_valid``, ``f1``, ``searches`` and all else that the reward measured.
    """
    result: dict[str, Any] = dict(summarize(groups))
    result["n"] = int(result["n"])
    result["aborted"] = int(result["aborted"])
    by_hops: dict[str, list[Group]] = {"em": list(groups)}
    for group in groups:
        hops = group.task.metadata.get("hops")
        if hops in _HOPS:
            by_hops.setdefault(f"em_{_HOPS[hops]}", []).append(group)
    for name, members in sorted(by_hops.items()):
        hits = [trajectory.reward_parts["em"] for group in members for trajectory in group.usable]
        if hits:
            interval = wilson(int(sum(hits)), len(hits))
            result[name] = sum(hits) / len(hits)
            result[f"{name}_interval"] = [round(interval.low, 4), round(interval.high, 4)]
            result[f"{name}_n"] = len(hits)
    return result
