"""The DeepRetrieval rewards (arXiv 2503.00223): what the query that the policy wrote has found.

    R = format_wrong                        if the tags are not in order
        format_right + error                if the answer holds no query, or the query was refused
        format_right + tier(value)          otherwise; without tiers the value itself, or ``nothing`` where it is 0

The value is measured on the call that the environment carried out and recorded: recall of the task's ``relevant``
passages, the rank of the first passage that holds an accepted answer, nDCG, or whether an SQL query returned what the
task's own does. An outage never gets here: it aborts the episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from search_agent.evaluation.metrics import hit, ndcg, recall, reciprocal_rank
from search_agent.protocols.base import SearchProtocol
from verl.data.tasks import Task
from verl.errors import UserError, at_least
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import ToolCall, Trajectory

RELEVANT = "relevant"
"""Where a task's metadata holds the relevant passages: a list of ids, or ids with their grades."""
ANSWER_DEPTHS = (1, 5, 20, 50, 100)


@dataclass(frozen=True)
class Config:
    """One table of the paper."""

    metric: Literal["recall", "answer_rank", "ndcg", "execution"]
    """What the query is measured by."""
    k: int = 3000
    """Results that count."""
    tiers: tuple[tuple[float, float], ...] = ()
    """Pairs of a bound and what reaching it earns, the best first: recall of at least, rank of at most. Without tiers
    the value itself is earned."""
    nothing: float = 0.0
    """What a query earns that reaches no tier, or finds nothing."""
    error: float = 0.0
    """What an answer earns that holds no query, or whose query was refused."""
    error_but_grammatical: float | None = None
    """What SQL earns that fails for another reason than its syntax; null is ``error``."""
    format_right: float = 0.1
    """What the right format earns besides."""
    format_wrong: float = -2.0
    """What a wrong format earns, and nothing else counts then."""
    json_is_format: bool = True
    """Whether an answer that is no JSON with a query is a wrong format; false makes it an ``error``."""
    compat: Literal["none", "upstream"] = "none"
    """``upstream`` pays an empty answer ``format_right`` (where JSON is not format), and takes the ideal ranking of
    nDCG in the order of the file, which can exceed 1, as the published code does."""

    def __post_init__(self) -> None:
        at_least(self, 1, "k")
        bounds = [bound for bound, _ in self.tiers]
        best_first = sorted(bounds, reverse=self.metric != "answer_rank")
        if bounds != best_first:
            raise UserError(f"tiers: the bounds {bounds} do not stand best first: write them as {best_first}")


def build(config: Config, protocol: SearchProtocol) -> RewardFunction:
    """Make the reward function."""

    def reward(task: Task, trajectory: Trajectory) -> Score:
        reading = protocol.read(trajectory)
        call = trajectory.calls[-1] if trajectory.calls else None
        value = None if call is None or call.failure is not None else measured(config, task, call)
        valid = reading.format_valid and (call is not None or not config.json_is_format)
        parts = {
            "answered": float(call is not None),
            "format_valid": float(valid),
            "refused": float(call is not None and call.failure is not None),
            "searches": float(value is not None),
            "query_words": float(len(call.request.split()) if call else 0),
            "think_words": float(sum(len(thought.split()) for thought in reading.thoughts)),
            **ranking_parts(config, task, call if value is not None else None),
        }
        if not valid:
            return Score(config.format_wrong, parts)
        if config.compat == "upstream" and reading.answer == "":
            return Score(config.format_right, parts)
        return Score(config.format_right + _earned(config, value, call), parts)

    return reward


def measured(config: Config, task: Task, call: ToolCall) -> float:
    """What the call is worth by the metric; a rank is 0 where no passage holds an answer.

    Raises ValueError on a task that says nothing about it.
    """
    if config.metric == "execution":
        return fact(task, call, "correct")
    if config.metric == "answer_rank":
        rank = fact(task, call, "answer_rank")
        return rank if rank <= config.k else 0.0
    grades, found = relevant(task), [result.id for result in call.results]
    if config.metric == "recall":
        return recall(found, grades, config.k)
    return ndcg(found, grades, config.k, ideal="listed" if config.compat == "upstream" else "sorted")


def ranking_parts(config: Config, task: Task, call: ToolCall | None) -> dict[str, float]:
    """The usual measures of what was found, at the usual depths; all 0 without a call."""
    if config.metric == "execution":
        return {"accuracy": fact(task, call, "correct") if call else 0.0}
    if config.metric == "answer_rank":
        rank = fact(task, call, "answer_rank") if call else 0.0
        return {"mrr": 1 / rank if rank else 0.0, **{f"hit@{k}": float(0 < rank <= k) for k in ANSWER_DEPTHS}}
    grades, found = relevant(task), [result.id for result in call.results] if call else []
    parts = {f"recall@{k}": recall(found, grades, k) for k in sorted({3, 10, 100, config.k})}
    parts |= {f"ndcg@{k}": ndcg(found, grades, k) for k in sorted({10, config.k})}
    parts |= {"hit@1": hit(found, grades, 1), "hit@20": hit(found, grades, 20)}
    return {**parts, "mrr": reciprocal_rank(found, grades)}


def relevant(task: Task) -> Mapping[str, float]:
    """The task's relevant passages with their grades, in the order of its file. Raises ValueError if it has none.

    In published rows the accepted answers are the ids, and the column ``score`` beside them the grades.
    """
    given, scores = task.metadata.get(RELEVANT), task.metadata.get("score")
    if given is None:
        graded = isinstance(scores, list | tuple) and len(scores) == len(task.golden_answers)
        given = dict(zip(task.golden_answers, scores, strict=True)) if graded else task.golden_answers  # type: ignore[arg-type]
    if isinstance(given, Mapping):
        grades = {str(identifier): float(grade) for identifier, grade in given.items()}
    elif isinstance(given, list | tuple):
        grades = dict.fromkeys(map(str, given), 1.0)
    else:
        grades = {}
    if not grades:
        raise ValueError(f"task {task.id}: its metadata has no {RELEVANT}: a list of passage ids, or ids with grades")
    return grades


def fact(task: Task, call: ToolCall, name: str) -> float:
    """A number that the tool measured. Raises ValueError if it did not."""
    if name not in call.facts:
        raise ValueError(f"task {task.id}: the tool {call.tool} did not measure {name}: set it in environment.tools")
    return call.facts[name]


def _earned(config: Config, value: float | None, call: ToolCall | None) -> float:
    if value is None:
        grammatical = call is not None and "syntax" not in (call.failure or "")
        other = config.error_but_grammatical
        return other if other is not None and grammatical else config.error
    if not config.tiers:
        return value if value > 0 else config.nothing
    if config.metric == "answer_rank":
        reached = [score for bound, score in config.tiers if 0 < value <= bound]
    else:
        reached = [score for bound, score in config.tiers if value >= bound]
    return reached[0] if reached else config.nothing
