"""Every total of the paper's tables, and what is not paid for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from search_agent.protocols.deepretrieval import Config as ProtocolConfig
from search_agent.protocols.deepretrieval import build as build_protocol
from search_agent.rewards.deepretrieval import Config, build
from verl.config.build import build as build_config
from verl.data.tasks import Task
from verl.errors import UserError
from verl.trajectory import ToolCall, ToolResult, Trajectory

GOOD = '<think>a b</think><answer>{"query": "two words"}</answer>'
SQL = '<think>a b</think><answer>{"sql": "SELECT 1"}</answer>'


def preset(name: str, **changes: Any) -> Config:
    from omegaconf import OmegaConf

    from verl.config.compose import CONFIG_DIR

    fields = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "reward" / f"deepretrieval_{name}.yaml"))
    assert isinstance(fields, dict)
    return build_config(Config, {str(key): value for key, value in {**fields, **changes}.items() if key != "plugin"})


def score(
    config: Config, task: Task, text: str, call: ToolCall | None, family: str = "evidence"
) -> tuple[float, Mapping[str, float]]:
    trajectory = Trajectory(task.id, 0)
    trajectory.append_prompt([1], "question <think>", "<think>")
    own = text.removeprefix("<think>")
    trajectory.append_generated([2], own, [0.0], [0], "stop")
    if call is not None:
        trajectory.append_observation([], "", [call])
    trajectory.outcome = "finished"
    result = build(config, build_protocol(ProtocolConfig(family=family)))(task, trajectory)  # type: ignore[arg-type]
    return result.reward, result.parts


def found(*ids: str) -> ToolCall:
    return ToolCall("query", "two words", tuple(ToolResult(one, 1.0 - n / 1e6) for n, one in enumerate(ids)))


def reviews(count: int) -> Task:
    return Task("t", "q", (), {"relevant": [f"r{n}" for n in range(count)]})


@pytest.mark.parametrize(
    ("hits", "total"),
    [
        (100, 6),
        (70, 6),
        (69, 5),
        (50, 5),
        (49, 4),
        (40, 4),
        (39, 2),
        (30, 2),
        (29, 1.5),
        (10, 1.5),
        (9, 1.1),
        (5, 1.1),
        (4, -2.5),
        (0, -2.5),
    ],
)
def test_literature_and_trials_pay_by_recall(hits: int, total: float) -> None:
    for name in ("pubmed", "ctgov"):
        reward, parts = score(preset(name), reviews(100), GOOD, found(*(f"r{n}" for n in range(hits))))
        assert reward == pytest.approx(total)
        assert parts["recall@3000"] == hits / 100


def test_results_beyond_the_depth_do_not_count() -> None:
    deep = found(*(f"x{n}" for n in range(3000)), *(f"r{n}" for n in range(100)))
    assert score(preset("pubmed"), reviews(100), GOOD, deep)[0] == -2.5


@pytest.mark.parametrize("name", ["pubmed", "ctgov", "nq"])
def test_no_query_and_a_refused_query_cost_the_same_and_a_wrong_format_most(name: str) -> None:
    config, task = preset(name), Task("t", "q", ("gold",), {"relevant": ["r0"]})
    no_json = "<think>a</think><answer>no json</answer>"
    assert score(config, task, no_json, None)[0] == -3
    assert score(config, task, GOOD, ToolCall("query", "(", failure="unbalanced"))[0] == -3
    assert score(config, task, "no tags", None)[0] == -4


def test_an_empty_answer_is_paid_by_the_published_code_alone() -> None:
    empty = "<think>a</think><answer></answer>"
    assert score(preset("pubmed"), reviews(1), empty, None)[0] == -3
    assert score(preset("pubmed", compat="upstream"), reviews(1), empty, None)[0] == 1


@pytest.mark.parametrize(
    ("rank", "nq", "squad"),
    [
        (1, 6, 6), (5, 6, 6), (6, 5, 5), (20, 5, 5), (21, 3, 3), (50, 3, 3), (51, 2, 2), (100, 2, 2), (101, 1.5, 1.5),
        (1000, 1.5, 1.5), (1001, 1.1, 1.1), (3000, 1.1, 1.1), (3001, -2.5, -1.5), (0, -2.5, -1.5),
    ],
)  # fmt: skip
def test_evidence_pays_by_the_rank_of_the_first_passage_with_an_answer(rank: int, nq: float, squad: float) -> None:
    call = ToolCall("query", "two words", facts={"answer_rank": float(rank)})
    task = Task("t", "q", ("gold",))
    assert score(preset("nq"), task, GOOD, call)[0] == pytest.approx(nq)
    reward, parts = score(preset("squad"), task, GOOD, call)
    assert reward == pytest.approx(squad)
    assert parts["hit@20"] == float(0 < rank <= 20)
    assert parts["mrr"] == (1 / rank if rank else 0)


def test_ranking_pays_ndcg_and_nothing_for_nothing() -> None:
    config, task = preset("beir"), Task("t", "q", (), {"relevant": {"a": 2, "b": 1}})
    assert score(config, task, GOOD, found("a", "b"))[0] == pytest.approx(1.1)
    assert score(config, task, GOOD, found("b", "a"))[0] == pytest.approx(0.1 + 0.8597186998)
    assert score(config, task, GOOD, found("x", "b"))[1]["mrr"] == 0.5
    assert score(config, task, GOOD, found("x"))[0] == 0
    assert score(config, task, GOOD, ToolCall("query", "q", failure="no"))[0] == 0
    assert score(config, task, "<think>a</think><answer>5</answer>", None)[0] == -2


def test_the_published_ideal_ranking_stands_in_the_order_of_the_file() -> None:
    task = Task("t", "q", (), {"relevant": {"b": 1, "a": 2}})
    ideal_sorted = score(preset("beir"), task, GOOD, found("a", "b"))[0]
    as_listed = score(preset("beir", compat="upstream"), task, GOOD, found("a", "b"))[0]
    assert ideal_sorted == pytest.approx(1.1)
    assert as_listed == pytest.approx(0.1 + 1.1631705)  # above 1, as the published code has it


@pytest.mark.parametrize(
    ("name", "right", "wrong", "grammatical", "syntax"),
    [("bird", 1.1, 0.4, 0, 0), ("bird_no_reason", 1.1, 0.4, 0.2, 0), ("spider", 1.1, 0, 0, 0)],
)
def test_sql_pays_for_the_right_rows(name: str, right: float, wrong: float, grammatical: float, syntax: float) -> None:
    task, config = Task("t", "q", ()), preset(name)

    def total(call: ToolCall) -> float:
        return score(config, task, SQL, call, "sql")[0]

    assert total(ToolCall("sql", "s", facts={"correct": 1.0})) == pytest.approx(right)
    assert total(ToolCall("sql", "s", facts={"correct": 0.0})) == pytest.approx(wrong)
    assert total(ToolCall("sql", "s", failure="sql: no such table: x")) == pytest.approx(grammatical)
    assert total(ToolCall("sql", "s", failure='sql: near "x": syntax error')) == pytest.approx(syntax)
    assert score(config, task, "<think>a</think><answer>{}</answer>", None, "sql")[0] == -2


def test_lengths_of_thought_and_query_are_measured() -> None:
    parts = score(
        preset("nq"), Task("t", "q", ("g",)), GOOD, ToolCall("query", "two words", facts={"answer_rank": 1.0})
    )[1]
    assert (parts["think_words"], parts["query_words"]) == (2, 2)


def test_a_task_or_a_tool_that_says_too_little_is_named() -> None:
    with pytest.raises(ValueError, match="task t: its metadata has no relevant"):
        score(preset("pubmed"), Task("t", "q", ()), GOOD, found("a"))
    with pytest.raises(ValueError, match="did not measure answer_rank"):
        score(preset("nq"), Task("t", "q", ("g",)), GOOD, found("a"))


def test_tiers_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match="best first"):
        Config("recall", tiers=((0.1, 1.0), (0.5, 2.0)))
    with pytest.raises(UserError, match="best first"):
        Config("answer_rank", tiers=((20, 1.0), (5, 2.0)))
