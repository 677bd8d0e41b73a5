"""What an evaluation found, as ``summary.json`` says it: exact match, by hops and by data set, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_agent.evaluation.diagnostics import diagnose, figures, read_from_parts
from search_agent.evaluation.doubts import doubts
from search_agent.evaluation.kilt import kilt
from search_agent.evaluation.statistics import wilson
from search_agent.protocols.base import Reading
from search_agent.protocols.rare import DOCUMENTS
from verl.rollout.groups import Group
from verl.trainer.summary import summarize
from verl.trajectory import Trajectory

Read = Callable[[Trajectory], Reading]

_SCORES = ("em", "f1", "cover")
_HOPS = {1: "one_hop", 2: "two_hop", 3: "three_hop", 4: "four_hop"}


def describe(groups: Sequence[Group], read: Read | None = None) -> dict[str, Any]:
    """Means over the episodes that infrastructure did not end; ``aborted`` counts the others.

    ``em`` and, where tasks say their ``hops``, ``em_one_hop``, ``em_two_hop`` ... each with ``<name>_interval``
    (95 %) and ``<name>_n``; ``format_valid``, ``f1``, ``searches`` and all else that the reward measured;
    ``evidence/...``, what the searches brought (over all episodes; ``read`` as for ``evidence``);
    ``kilt/...``, where tasks name the pages that their answers stand on (``search_agent.evaluation.kilt``);
    ``warnings``, what makes all of it meaningless.
    Where tasks come from several data sets (``data_source``), ``em/<set>``, ``f1/<set>`` and ``cover/<set>``, and
    ``em/mean`` and so on: the mean over sets, which is what papers report.
    """
    result: dict[str, Any] = dict(summarize(groups))
    result["n"] = int(result["n"])
    result["aborted"] = int(result["aborted"])
    named: dict[str, list[Group]] = {"em": list(groups)}
    by_set: dict[str, list[Group]] = {}
    for group in groups:
        hops, source = group.task.metadata.get("hops"), group.task.metadata.get("data_source")
        if hops in _HOPS:
            named.setdefault(f"em_{_HOPS[hops]}", []).append(group)
        if source:
            by_set.setdefault(str(source), []).append(group)
    if len(by_set) > 1:
        named |= {f"em/{name}": members for name, members in by_set.items()}
        result |= by_data_set(by_set)
    for name, members in sorted(named.items()):
        hits = [[episode.reward_parts["em"] for episode in g.usable if "em" in episode.reward_parts] for g in members]
        if hits := [of_task for of_task in hits if of_task]:
            interval = wilson(sum(sum(of_task) / len(of_task) for of_task in hits), len(hits))
            result[name] = sum(map(sum, hits)) / sum(map(len, hits))
            result[f"{name}_interval"] = [round(interval.low, 4), round(interval.high, 4)]
            result[f"{name}_n"] = sum(map(len, hits))
    brought = evidence(groups, read)
    result |= {name: value for name, value in brought.items() if name.startswith("evidence/")} | kilt(groups)
    result["warnings"] = doubts(result, open_book=all(DOCUMENTS in (group.task.prompt or "") for group in groups))
    return result


def evidence(groups: Sequence[Group], read: Read | None = None) -> dict[str, float]:
    """What searches brought (``diagnostics.figures``), at a training step as in an evaluation.

    ``read`` is the protocol's; without it refinements are not known.
    """
    return figures(
        [
            diagnose(group.task, episode, (read or read_from_parts)(episode), right=episode.reward_parts.get("em") == 1)
            for group in groups
            for episode in group.trajectories
        ]
    )


def by_data_set(groups: Mapping[str, Sequence[Group]]) -> dict[str, float]:
    """``em/<set>``, ``f1/<set>``, ``cover/<set>`` of each set that was scored so, and their means over the sets."""
    result: dict[str, float] = {}
    for score in _SCORES:
        means = {}
        for name, members in groups.items():
            parts = [trajectory.reward_parts for group in members for trajectory in group.usable]
            if values := [measured[score] for measured in parts if score in measured]:
                means[name] = sum(values) / len(values)
        result |= {f"{score}/{name}": mean for name, mean in sorted(means.items())}
        if means:
            result[f"{score}/mean"] = sum(means.values()) / len(means)
    return result
