"""DeepRetrieval's protocol: what is a query, and what is format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.protocols.actions import Answer, Call, Invalid, Turns
from search_agent.protocols.deepretrieval import MAX_QUERY_CHARS, Config, build, query_in, tags_once

PROTOCOL = build(Config())
SQL = build(Config(family="sql"))
THOUGHT = "<think> the first spelling </think>\n"


def parse(text: str, protocol: object = PROTOCOL) -> object:
    return protocol.parse(Turns([text]))  # type: ignore[attr-defined]


def test_the_answers_query_is_the_call_that_ends_the_episode() -> None:
    body = '{"query": "aspirin AND stroke"}'
    assert parse(f"{THOUGHT}<answer>{body}</answer>") == Answer(body, Call("query", "aspirin AND stroke"))
    assert parse(f'{THOUGHT}<answer> {{"sql": "SELECT 1"}} </answer>', SQL) == Answer(
        '{"sql": "SELECT 1"}', Call("sql", "SELECT 1")
    )


def test_the_last_answer_is_the_one() -> None:
    text = '<answer>{"query": "a"}</answer> <answer> {"query": "b"}</answer>'
    assert parse(text) == Answer('{"query": "b"}', Call("query", "b"))
    assert parse('<answer> <answer>{"query": "a"}</answer>') == Answer('{"query": "a"}', Call("query", "a"))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "5",
        "null",
        "[]",
        '"query"',
        "{query: 1}",
        '{"query": 5}',
        '{"query": null}',
        '{"query": " "}',
        '{"sql": "x"}',
        '{"query": ["a"]}',
        '{"query": "' + "x" * (MAX_QUERY_CHARS + 1) + '"}',
        "[" * 100_000,
    ],
)
def test_what_holds_no_query_is_an_answer_without_a_call(body: str) -> None:
    assert parse(f"{THOUGHT}<answer>{body}</answer>") == Answer(body, None)


def test_an_answer_that_is_not_closed_is_no_action() -> None:
    assert isinstance(parse('<answer>{"query": "a"}'), Invalid)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("<think></think> words <answer></answer> more", True),  # as published: text outside the tags is not looked at
        ("<think>a</think>", False),
        ("a</think><answer>b</answer>", False),
        ("<think>a<think></think><answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a<answer>b</think></answer>", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
    ],
)
def test_format_is_every_tag_once_and_in_order(text: str, valid: bool) -> None:
    assert tags_once(text, ("think", "answer")) is valid


def test_without_reasoning_the_answer_alone_is_opened_and_asked_for() -> None:
    protocol = build(Config(family="trials", reasoning=False))
    assert protocol.prefill == "<answer>"
    assert tags_once("<answer>b</answer>", protocol.blocks)
    assert "<think>" not in protocol.prompt("P: adults")


@pytest.mark.parametrize("family", ["literature", "trials", "evidence", "sparse", "dense", "sql"])
def test_every_family_asks_for_json_and_puts_the_question_last(family: str) -> None:
    prompt = build(Config(family=family)).prompt("P: adults")  # type: ignore[arg-type]
    assert ('{"sql":' if family == "sql" else '{"query":') in prompt
    assert prompt.endswith("\n\nP: adults\n")


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse(text)
    parse(f"<answer>{text}</answer>")
    query_in(text, "query")
