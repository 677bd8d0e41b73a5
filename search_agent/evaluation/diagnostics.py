"""Why answers are right or wrong: what the searches of an episode brought, and what the policy made of it.

Evidence is what the task names (``supporting_ids``); where it names none, a passage that holds an accepted answer as
whole words stands for it. Yes, no and nothing are held by any text: such tasks without named evidence are not judged.
Shares are over all questions that can be judged, the denominator beside them: a failed episode has found nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from search_agent.evaluation.statistics import wilson
from search_agent.protocols.base import Reading
from search_agent.rewards.evidence import EVIDENCE
from search_agent.rewards.text import normalise, word_match
from verl.data.tasks import Task
from verl.trajectory import Trajectory

_FIGURES = {
    "found": "evidence_found",
    "right_without": "right_without_evidence",
    "answered_without": "answered_without_evidence",
    "wrong_with": "wrong_with_evidence",
    "refinement_keeps_answer": "refinement_keeps_answer",
    "duplicate_queries": "duplicate_queries",
    "empty_searches": "empty_searches",
    "refused_searches": "refused_searches",
}
_TURNS = 8
"""Searches that have a metric of their own; curves of the thirtieth say nothing."""
_ANY_TEXT_HOLDS = frozenset({"", "yes", "no", "noanswer"})


@dataclass(frozen=True, slots=True)
class Searched:
    """One search of an episode."""

    query: str
    gain: float | None
    """Evidence that it was the first to show, over all evidence; None where the task cannot be judged."""
    duplicate: bool
    """Whether the same query, normalised, was asked before in this episode."""
    empty: bool
    latency_s: float
    cached: bool
    refused: bool
    """Whether the tool refused the request; an outage ends the episode as aborted instead."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One episode."""

    searches: tuple[Searched, ...]
    evidence: float | None
    """Share of the evidence that was shown, in [0, 1]; None where the task cannot be judged."""
    right: bool
    answered: bool
    aborted: bool
    kept: bool | None
    """Whether a refinement repeats the accepted answer that a passage showed; None where that cannot be asked."""

    @property
    def found(self) -> bool | None:
        """Whether all evidence was shown."""
        return None if self.evidence is None else self.evidence > 1 - 1e-9

    @property
    def verdict(self) -> str:
        """``aborted``, ``unjudged``, or how evidence and answer go together."""
        if self.aborted or self.found is None:
            return "aborted" if self.aborted else "unjudged"
        return f"{'right' if self.right else 'wrong'} {'with' if self.found else 'without'} evidence"


def diagnose(task: Task, trajectory: Trajectory, reading: Reading, *, right: bool) -> Diagnosis:
    """Judge one episode, given what its protocol reads in it and whether its answer is right."""
    wanted = {str(identifier) for identifier in task.metadata.get(EVIDENCE) or ()}
    golds = [gold for gold in task.golden_answers if normalise(gold) not in _ANY_TEXT_HOLDS]
    hidden = any(segment.calls and not len(segment) for segment in trajectory.segments)  # found for the reward alone
    judged = bool(wanted or golds) and not hidden
    missing, shown, asked, searches = set(wanted), False, set[str](), []
    for segment in trajectory.segments:
        holds = bool(segment.calls) and bool(word_match(segment.text, golds))
        for call in segment.calls:
            found = {result.id for result in call.results} & missing
            missing -= found
            if call.tool == "search":
                gain = len(found) / len(wanted) if wanted else float(holds and not shown)
                query = normalise(call.request)
                searches.append(
                    Searched(
                        query=call.request,
                        gain=gain if judged else None,
                        duplicate=query in asked,
                        empty=not call.results,
                        latency_s=call.latency_s,
                        cached=call.cached,
                        refused=call.failure is not None,
                    )
                )
                asked.add(query)
            shown |= holds
    evidence = 1 - len(missing) / len(wanted) if wanted else float(shown)
    return Diagnosis(
        searches=tuple(searches),
        evidence=evidence if judged else None,
        right=right,
        answered=reading.answer is not None,
        aborted=trajectory.outcome == "aborted",
        kept=bool(word_match(" ".join(reading.refinements), golds)) if shown and reading.refinements else None,
    )


def read_from_parts(trajectory: Trajectory) -> Reading:
    """Whether there was an answer, as the reward's parts have it: all that is known where no protocol is at hand."""
    answered = trajectory.reward_parts.get("answered") == 1
    return Reading("" if answered else None, (), (), (), False)


def summarise(diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """What all episodes say together; what cannot be said is left out, never 0.

    ``hit_at`` and ``found_at``: entry k - 1 is the share of judged episodes to which k searches had shown some, or all,
    of the evidence; ``new_at``: what the k-th search added, over the episodes that made it. ``latency_s`` has the
    median and the 95th percentile of searches that went to the server.
    """
    if not diagnoses:
        return {}
    judged = [diagnosis for diagnosis in diagnoses if diagnosis.evidence is not None]
    searches = [search for diagnosis in diagnoses for search in diagnosis.searches]
    asked = [diagnosis.kept for diagnosis in diagnoses if diagnosis.kept is not None]
    waits = sorted(search.latency_s for search in searches if not search.cached and not search.refused)
    result: dict[str, Any] = {
        "n": len(diagnoses),
        "aborted": sum(diagnosis.aborted for diagnosis in diagnoses),
        "judged": len(judged),
        "searches": len(searches) / len(diagnoses),
    }
    if searches:
        result |= {
            "duplicate_queries": fmean(search.duplicate for search in searches),
            "empty_searches": fmean(search.empty for search in searches),
            "refused_searches": fmean(search.refused for search in searches),
            "cached_searches": fmean(search.cached for search in searches),
        }
    if waits:
        result["latency_s"] = {"median": _quantile(waits, 0.5), "p95": _quantile(waits, 0.95)}
    if judged:
        verdicts = [diagnosis.verdict for diagnosis in judged]
        result |= {
            "evidence_found": fmean(bool(diagnosis.found) for diagnosis in judged),
            "answered_without_evidence": fmean(
                diagnosis.answered and not diagnosis.found and not diagnosis.aborted for diagnosis in judged
            ),
            "right_without_evidence": fmean(verdict == "right without evidence" for verdict in verdicts),
            "wrong_with_evidence": fmean(verdict == "wrong with evidence" for verdict in verdicts),
            **_by_search(judged),
        }
    if asked:
        result |= {"refinement_keeps_answer": fmean(asked), "refinement_keeps_answer_n": len(asked)}
    return result


def figures(diagnoses: Sequence[Diagnosis]) -> dict[str, float]:
    """What all episodes say together as metrics: ``evidence/found``, ``evidence/hit_at_1``, ``search/latency_p95_s``.

    ``evidence/failed`` is the share of episodes that infrastructure ended. Names of what a repeated run need not repeat
    begin with ``search/``.
    """
    found = summarise(diagnoses)
    result = {f"evidence/{key}": found[name] for key, name in _FIGURES.items() if name in found}
    for name in ("hit_at", "found_at", "new_at"):
        for k, share in enumerate(found.get(name, ())[:_TURNS], 1):
            result[f"evidence/{name}_{k}"] = share
    if "latency_s" in found:
        result |= {f"search/latency_{name}_s": value for name, value in found["latency_s"].items()}
    if diagnoses:
        result["evidence/failed"] = found["aborted"] / found["n"]
    return result


def accuracy_by_searches(diagnoses: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Accuracy against searches spent, one row for each number of searches that occurs.

    ``right`` of ``n`` episodes that made exactly ``searches``, with Wilson's 95 % interval; ``within`` is the share of
    all episodes that were right with that many or fewer: what a budget of so many searches would at least have left.
    """
    rows, right_so_far = [], 0
    for count in sorted({len(diagnosis.searches) for diagnosis in diagnoses}):
        members = [diagnosis.right for diagnosis in diagnoses if len(diagnosis.searches) == count]
        right_so_far += sum(members)
        interval = wilson(sum(members), len(members))
        rows.append(
            {
                "searches": count,
                "n": len(members),
                "right": interval.estimate,
                "interval": [interval.low, interval.high],
                "within": right_so_far / len(diagnoses),
            }
        )
    return rows


def _by_search(judged: Sequence[Diagnosis]) -> dict[str, list[float]]:
    hit_at, found_at, new_at = [], [], []
    for k in range(1, max((len(diagnosis.searches) for diagnosis in judged), default=0) + 1):
        so_far = [sum(search.gain or 0.0 for search in diagnosis.searches[:k]) for diagnosis in judged]
        made = [diagnosis.searches[k - 1].gain or 0.0 for diagnosis in judged if len(diagnosis.searches) >= k]
        hit_at.append(fmean(share > 0 for share in so_far))
        found_at.append(fmean(share > 1 - 1e-9 for share in so_far))
        new_at.append(sum(made) / len(made))
    return {"hit_at": hit_at, "found_at": found_at, "new_at": new_at}


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is at or above this share of them."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
