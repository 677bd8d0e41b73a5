"""The published files between the steps: what is in them, and how the next one is made of the last.

questions        [{query_id, question, answer}]
inference        {score, output: [{query_id, question, answer, pred, finished, messages, rank}], config}
entropy          [{query_id, log_probs}]          the mean cost of the accepted answer: a positive number
training         [{messages, prob}]               prob is that cost; ``weight`` in its place where higher is better
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_agent.rewards.text import cover_match, exact_match, f1
from verl.durable import write_atomically
from verl.errors import UserError

MEASURES: dict[str, Callable[[str, Sequence[str]], float]] = {"f1": f1, "em": exact_match, "acc": cover_match}
"""What they are called in a file's ``score``; ``acc`` is a substring match."""


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file. Raises UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def read_rows(path: str | Path, needed: Sequence[str], *, under: str | None = None) -> list[dict[str, Any]]:
    """A file's list of objects (in its field ``under``), each with the ``needed`` fields. Raises UserError."""
    value = read_json(path)
    rows = value.get(under) if under and isinstance(value, Mapping) else value
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds no list of rows{f' under {under}' if under else ''}")
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or any(name not in row for name in needed):
            raise UserError(f"{path}, row {place}: not an object with {', '.join(needed)}")
    return rows


def write_json(path: Path, value: Any) -> Path:
    """Write it whole or not at all. Raises UserError if the file is there: outputs never overwrite what was made."""
    if path.exists():
        raise UserError(f"{path} is there already: move it away, or write another --output_dir")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1))
    return path


def tasks_of(rows: Sequence[Mapping[str, Any]], left: int, right: int) -> list[dict[str, Any]]:
    """Rows of a question file as ours; an answer may also be a list of accepted ones."""
    tasks = []
    for row in rows[left:right]:
        golds = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        tasks.append({"id": str(row["query_id"]), "question": row["question"], "golden_answers": golds})
    return tasks


def score(output: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Percent, over all rows: one that came to no answer counts as wrong."""
    if not output:
        return dict.fromkeys(MEASURES, 0.0)
    return {
        name: round(100 * sum(measure(row["pred"], golds(row)) for row in output) / len(output), 3)
        for name, measure in MEASURES.items()
    }


def golds(row: Mapping[str, Any]) -> list[str]:
    """The accepted answers of a row."""
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


def with_gold(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The row's messages with its first accepted answer in the last turn. Raises UserError if that is not a turn."""
    *before, last = row["messages"]
    if last["role"] != "assistant" or not before:
        raise UserError(f"question {row['query_id']}: its messages do not end with an answer")
    return [*before, {"role": "assistant", "content": golds(row)[0]}]


def joined(
    inference: Sequence[Mapping[str, Any]], entropy: Sequence[Mapping[str, Any]], size: int
) -> list[dict[str, Any]]:
    """The training file: messages that end with the accepted answer, each with its cost, joined by question, and after
    each the chats in which its passages were chosen (``rank``), at the same cost.

    Questions without a cost are left out; several rows of one question are matched in their order. Raises UserError
    for a cost that is no number or is below 0.
    """
    costs: dict[Any, list[float]] = {}
    for row in entropy:
        cost = row["log_probs"]
        if not isinstance(cost, int | float) or not math.isfinite(cost) or cost < 0:
            raise UserError(f"question {row['query_id']}: log_probs is {cost}, and a cost is a number from 0 up")
        costs.setdefault(row["query_id"], []).append(float(cost))
    found = []
    for row in inference:
        if costs.get(row["query_id"]):
            cost = costs[row["query_id"]].pop(0)
            chats = [with_gold(row), *(chat["messages"] for chat in row.get("rank", []))]
            found += [{"messages": chat, "prob": cost} for chat in chats]
    return found[:size]


def rewarded(inference: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The training file whose weights are a metric of the policy's own answer: here higher is better."""
    if metric not in MEASURES:
        raise UserError(f"--metric {metric}: write one of {', '.join(MEASURES)}")
    answered = [row for row in inference if row.get("finished", True)]
    return [{"messages": with_gold(r), "weight": MEASURES[metric](r["pred"], golds(r))} for r in answered]


def weighed(rows: Sequence[Mapping[str, Any]], *, use: bool) -> list[dict[str, Any]]:
    """Traces of a training file: with ``use``, a cost becomes the weight 4 exp(-cost); without, weights are dropped."""
    traces = []
    for row in rows:
        weight = row.get("weight", 4 * math.exp(-row["prob"]) if "prob" in row else 1.0) if use else 1.0
        traces.append({"messages": row["messages"], "weight": weight})
    return traces
