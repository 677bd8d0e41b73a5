"""A client of OpenAI's API against servers that answer as vLLM's does, and as vendors' do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from search_agent.openai_client import Draw, Endpoint, OpenAIClient
from tests.search_agent.scripted_server import Scripted
from verl.errors import InfrastructureError, UserError

SEARCH = "<search> who </search> and more"


def ask(url: str, call: Callable[[OpenAIClient], Coroutine[Any, Any, Any]], key: str = "", retries: int = 1) -> Any:
    async def inside() -> Any:
        async with OpenAIClient(Endpoint((url,), "m", key, timeout_s=20, retries=retries)) as client:
            return await call(client)

    return asyncio.run(inside())


def test_ids_go_out_and_ids_with_their_stop_string_come_back(tokenizer: Any) -> None:
    server = Scripted(lambda prompt: SEARCH, tokenizer)
    ids = tokenizer("who wrote it")["input_ids"]
    draw = Draw(9, temperature=0.7, top_p=0.9, top_k=5, stop=("</search>", "</answer>"), seed=3, n=2, logprobs=True)
    first, second = ask(server.start(), lambda client: client.complete(ids, draw))
    assert first == second
    assert (first.text, first.stop, first.finish_reason) == ("<search> who </search>", "</search>", "stop")
    assert tokenizer.decode(list(first.token_ids)) == first.text
    assert first.logprobs == (-0.5,) * len(first.token_ids)
    [asked] = server.asked
    assert asked["prompt"] == ids
    assert {key: asked[key] for key in ("max_tokens", "temperature", "top_p", "top_k", "seed", "n")} == {
        "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3, "n": 2,
    }  # fmt: skip


def test_a_server_that_refuses_what_is_beyond_the_api_is_asked_without_it_from_then_on() -> None:
    server = Scripted(lambda prompt: SEARCH, strict=True)

    async def twice(client: OpenAIClient) -> list[Any]:
        return [await client.complete("who", Draw(9, stop=("</search>",))) for _ in range(2)]

    answers = ask(server.start(), twice)
    assert [answer.text for [answer] in answers] == ["<search> who "] * 2
    assert ["include_stop_str_in_output" in asked for asked in server.asked] == [True, False, False]


def test_a_conversation_is_answered_and_a_begun_reply_continued() -> None:
    server = Scripted(lambda said: f"{said}!")
    messages = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "<think>"}]
    [answer] = ask(server.start(), lambda client: client.chat(messages, Draw(9)))
    assert answer.text == "[user]who[assistant]<think>!"
    assert server.asked[0]["continue_final_message"] is True


def test_a_failure_that_may_pass_is_tried_again_and_one_that_stays_is_an_outage() -> None:
    server = Scripted(lambda prompt: "mara", status=[503])
    url = server.start()
    assert ask(url, lambda client: client.complete("who", Draw(9)))[0].text == "mara"
    server.status = [500, 500]
    with pytest.raises(InfrastructureError, match="status 500"):
        ask(url, lambda client: client.complete("who", Draw(9)))


def test_a_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted(lambda prompt: "mara", key="s3cret")
    url = server.start()
    monkeypatch.setenv("MY_KEY", "s3cret")
    assert ask(url, lambda client: client.complete("who", Draw(9)), "MY_KEY")[0].text == "mara"
    monkeypatch.setenv("MY_KEY", "wr0ng")
    with pytest.raises(UserError, match="status 401") as error:
        ask(url, lambda client: client.complete("who", Draw(9)), "MY_KEY")
    assert "wr0ng" not in str(error.value)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UserError, match="environment variable MY_KEY is not set"):
        ask(url, lambda client: client.complete("who", Draw(9)), "MY_KEY")


def test_an_address_that_is_none_is_told_before_anything_is_asked() -> None:
    with pytest.raises(UserError, match="write http://HOST:PORT/v1"):
        Endpoint(("host:8000",), "m")
    with pytest.raises(UserError, match="endpoint_model= is missing"):
        Endpoint(("http://host:8000/v1",), "")


def test_a_server_that_takes_four_stop_strings_is_told_four_and_the_others_are_found_here() -> None:
    server = Scripted(lambda prompt: "one <e> two <b> three", most_stops=4)
    stops = ("<a>", "<b>", "<c>", "<d>", "<e>")

    async def twice(client: OpenAIClient) -> list[Any]:
        return [await client.complete("who", Draw(9, stop=stops)) for _ in range(2)]

    for [answer] in ask(server.start(), twice):
        assert (answer.text, answer.stop, answer.finish_reason) == ("one <e>", "<e>", "stop")
    assert [len(asked["stop"]) for asked in server.asked] == [5, 4, 4]


def test_a_stop_string_that_a_server_passed_over_ends_the_answer_here() -> None:
    server = Scripted(lambda prompt: SEARCH, deaf=True)
    [answer] = ask(
        server.start(), lambda client: client.chat([{"role": "user", "content": "who"}], Draw(9, stop=("</search>",)))
    )
    assert (answer.text, answer.stop) == ("<search> who </search>", "</search>")
