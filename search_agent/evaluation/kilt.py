"""KILT's measures (arXiv 2009.02252): R-precision over pages, and answers that count only where all pages were found.

A task says in its metadata (``provenance``) on which pages its answers stand: a list for each published answer, of
which one is enough. Pages are told by their titles, which every corpus of Wikipedia has. KILT's normalisation and exact
match are those of ``search_agent.rewards.text``; so is its F1, but that there no answer of yes or no shares a word with
a longer one. What papers on KILT's sets call accuracy is cover match here (``cover``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from verl.data.tasks import Task
from verl.rollout.groups import Group
from verl.trajectory import Trajectory

PROVENANCE = "provenance"
"""Where a task's metadata has its pages."""


def r_precision(pages: Iterable[str], provenance: Sequence[Sequence[str]]) -> float:
    """Share of right pages among the first R of ``pages`` (a page counts once), R being how many one answer stands on.

    The best over the sets of pages in ``provenance``, those that name none left out. Raises ValueError if none is left.
    """
    found = list(dict.fromkeys(map(_page, pages)))
    wanted = [{_page(title) for title in titles} for titles in provenance if titles]
    if not wanted:
        raise ValueError("no answer names the pages that it stands on")
    return max(len(gold.intersection(found[: len(gold)])) / len(gold) for gold in wanted)


def pages_of(trajectory: Trajectory) -> list[str]:
    """Titles of the passages that the episode was shown, in the order in which it was."""
    return [result.title for call in trajectory.calls for result in call.results]


def kilt(groups: Sequence[Group]) -> dict[str, float]:
    """``kilt/r_precision``, and ``kilt/em`` and ``kilt/f1`` where those were measured: means over the episodes that
    infrastructure did not end, of the tasks that name pages. Nothing where no task does."""
    rows = [
        (r_precision(pages_of(episode), named), episode.reward_parts)
        for group in groups
        if any(named := provenance_of(group.task))
        for episode in group.usable
    ]
    if not rows:
        return {}
    result = {"kilt/r_precision": fmean(precision for precision, _ in rows)}
    for score in ("em", "f1"):
        if all(score in parts for _, parts in rows):
            result[f"kilt/{score}"] = fmean(parts[score] if precision == 1 else 0.0 for precision, parts in rows)
    return result


def provenance_of(task: Task) -> Sequence[Sequence[str]]:
    """The titles that each of the task's answers stands on."""
    named: Sequence[Sequence[str]] = task.metadata.get(PROVENANCE) or ()
    return named


def _page(title: str) -> str:
    """One spelling of a title: corpora differ in case and underscores."""
    return " ".join(title.replace("_", " ").casefold().split())
