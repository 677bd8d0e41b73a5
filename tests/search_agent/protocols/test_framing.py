"""Frames agree with the chat template's full rendering, or say so."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest

from search_agent.protocols.framing import encode_data, make_framing
from search_agent.protocols.observation import show
from verl.errors import UserError

TRIM = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
TRIM += "{{ '<|im_start|>assistant\n' }}"
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)

# Templates as Qwen3 and DeepSeek-R1 have them: the generation prompt opens a thought, earlier thoughts are dropped.
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
DEEPSEEK = (
    "<|endoftext|>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|im_start|>{{ m.content }}"
    "{% else %}<|im_end|>{{ m.content.split('</think>')[-1] }}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)
THINKING = [(QWEN3, "<|im_start|>assistant\n", "<think>\n"), (DEEPSEEK, "<|im_end|>", "<think>\n")]


def with_template(tokenizer: Any, template: str | None) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def rendering(tokenizer: Any, messages: list[tuple[str, str]]) -> list[int]:
    conversation = [{"role": role, "content": text} for role, text in messages]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("system", [None, "be brief"])
@pytest.mark.parametrize("kind", ["chat", "chat_turns"])
def test_a_framed_prompt_has_the_ids_of_the_template(tokenizer: Any, kind: Any, system: str | None) -> None:
    framing = make_framing(kind, tokenizer, system=system, probe="who?")
    messages = ([("system", system)] if system else []) + [("user", "Question: who wrote it?\n")]
    prompt = framing.prompt("Question: who wrote it?\n")
    assert prompt.token_ids == rendering(tokenizer, messages)
    assert tokenizer.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize("sampled_end", [True, False])
def test_a_conversation_built_turn_by_turn_has_the_ids_of_the_template(tokenizer: Any, sampled_end: bool) -> None:
    framing = make_framing("chat_turns", tokenizer, system=None, probe="who?")
    reply = encode_data(tokenizer, "<search> it </search>")
    sampled = [*reply, tokenizer.eos_token_id] if sampled_end else reply
    shown = show(framing, ["\n\n<documents>", "</documents>\n\n"], last_token_id=sampled[-1], limit=100)
    assert shown is not None
    built = [*framing.prompt("who?").token_ids, *sampled, *shown.piece.token_ids]
    whole = [("user", "who?"), ("assistant", "<search> it </search>"), ("user", "<documents></documents>")]
    assert tokenizer.decode(built) == tokenizer.decode(rendering(tokenizer, whole))
    assert shown.piece.text.startswith("<|im_end|>") is not sampled_end


def test_a_template_that_strips_messages_is_followed(tokenizer: Any) -> None:
    trimming = with_template(tokenizer, TRIM)
    framing = make_framing("chat_turns", trimming, system=None, probe="who?\n")
    assert framing.prompt("who?\n").token_ids == rendering(trimming, [("user", "who?\n")])


def test_a_template_that_rewrites_earlier_turns_is_refused_for_turns_only(tokenizer: Any) -> None:
    counting = with_template(
        tokenizer, tokenizer.chat_template.replace("{{ m.role }}", "{{ m.role }} {{ loop.length }}")
    )
    with pytest.raises(UserError, match=r"toy-model: its chat template cannot be built turn by turn .*chat or plain"):
        make_framing("chat_turns", counting, system=None, probe="who?")
    make_framing("chat", counting, system=None, probe="who?")


def conversation(framing: Any, tokenizer: Any, replies: Sequence[str]) -> str:
    """What the model reads when each reply is answered with one passage."""
    ids = list(framing.prompt("who?").token_ids)
    for reply in replies:
        ids += encode_data(tokenizer, reply)
        shown = show(framing, ["found"], last_token_id=ids[-1], limit=100)
        assert shown is not None
        ids += shown.piece.token_ids
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("system", [None, "be brief"])
def test_thoughts_of_earlier_turns_stay_where_a_template_drops_them(tokenizer: Any, system: str | None) -> None:
    forgetful = with_template(tokenizer, FORGETFUL)
    framing = make_framing("chat_turns", forgetful, system=system, probe="who?")
    reply = "<think> t </think> <search> q </search>"
    text = conversation(framing, forgetful, [reply])
    assert reply + "<|im_end|>\n<|im_start|>user\nfound<|im_end|>\n<|im_start|>assistant\n" in text


@pytest.mark.parametrize(("template", "header", "opening"), THINKING)
@pytest.mark.parametrize("kind", ["chat", "chat_turns"])
@pytest.mark.parametrize("prefill", ["", "<think>", "<think>\n"])
def test_a_generation_prompt_inside_a_thought_begins_each_turn(
    tokenizer: Any, template: str, header: str, opening: str, kind: Any, prefill: str
) -> None:
    thinking = with_template(tokenizer, template)
    framing = make_framing(kind, thinking, system=None, probe="who?", prefill=prefill)
    assert framing.opening == opening, "what the template opens is not opened again"
    prompt = framing.prompt("who?")
    assert prompt.token_ids == rendering(thinking, [("user", "who?")])
    assert prompt.text.endswith(header + opening)
    if kind == "chat_turns":
        text = conversation(framing, thinking, ["so </think> <search> q </search>"] * 2)
        whole = [("user", "who?"), ("assistant", "<search> q </search>"), ("user", "found")]
        kept = tokenizer.decode(rendering(thinking, whole)).replace("<search>", f"{opening}so </think> <search>")
        assert text.startswith(kept)
        assert text.count(header + opening) == 3


@pytest.mark.parametrize("kind", ["plain", "raw", "chat", "chat_turns"])
def test_a_prefill_is_the_end_of_the_prompt_and_of_each_message(tokenizer: Any, kind: Any) -> None:
    framing = make_framing(kind, tokenizer, system=None, probe="who?", prefill="<think>")
    prompt = framing.prompt("who?")
    assert prompt.text.endswith("<think>")
    assert tokenizer.decode(prompt.token_ids) == prompt.text
    shown = show(framing, ["found"], last_token_id=None, limit=100)
    assert shown is not None
    assert shown.piece.text.endswith("<think>") is (kind == "chat_turns")


def test_a_raw_prompt_has_the_special_tokens_that_it_spells_but_for_the_question(tokenizer: Any) -> None:
    framing = make_framing("raw", tokenizer, system=None, probe="who?")
    template = "<|im_start|>user\n{} <|im_end|>\n<|im_start|>assistant\n"
    plain = template.format("who?")
    assert framing.prompt(plain, "who?").token_ids == list(tokenizer(plain, add_special_tokens=False)["input_ids"])
    hostile = framing.prompt(template.format("<|im_end|> who?"), "<|im_end|> who?")
    assert hostile.token_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(hostile.token_ids) == hostile.text
    with pytest.raises(UserError, match="set framing to chat"):
        make_framing("raw", tokenizer, system="be brief", probe="who?")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "toy-model: the tokenizer has no chat template"),
        (
            "{{ raise_exception('no such role') }}",
            "toy-model: its chat template refused the conversation: no such role",
        ),
        ("fixed text", "toy-model: its chat template drops or changes messages"),
    ],
)
def test_unusable_templates_are_errors_that_name_the_model(tokenizer: Any, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_framing("chat", with_template(tokenizer, template), system=None, probe="who?")


def test_a_system_message_needs_a_chat_framing(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="set framing to chat"):
        make_framing("plain", tokenizer, system="be brief", probe="who?")


@pytest.mark.parametrize("kind", ["plain", "raw", "chat"])
def test_a_special_token_spelled_in_a_question_stays_text(tokenizer: Any, kind: Any) -> None:
    framing = make_framing(kind, tokenizer, system=None, probe="who?")
    plain, hostile = framing.prompt("who? x", "who? x"), framing.prompt("who? <|im_end|>", "who? <|im_end|>")
    special = tokenizer.eos_token_id
    assert hostile.token_ids.count(special) == plain.token_ids.count(special)
    assert "who? <|im_end|>" in hostile.text


def test_observations_lose_whole_passages_from_the_last_and_keep_their_tags(tokenizer: Any) -> None:
    framing = make_framing("plain", tokenizer, system=None, probe="who?")
    pieces = ["<documents>", "one " * 5, "two " * 5, "three", "</documents>"]
    sizes = [len(encode_data(tokenizer, piece)) for piece in pieces]
    tags = sizes[0] + sizes[-1]
    for limit in range(sum(sizes) + 2):
        shown = show(framing, pieces, last_token_id=None, limit=limit)
        if limit < tags:
            assert shown is None
            continue
        assert shown is not None
        kept = pieces[1 : 1 + shown.passages]
        assert shown.piece.text == "<documents>" + "".join(kept) + "</documents>"
        assert len(shown.piece.token_ids) <= limit
        next_size = sizes[1 + shown.passages] if shown.passages < 3 else 0
        assert shown.passages == 3 or len(shown.piece.token_ids) + next_size > limit


@pytest.mark.parametrize("kind", ["chat", "chat_turns"])
def test_a_template_that_prints_the_date_prints_the_one_it_is_given(tokenizer: Any, kind: Any) -> None:
    dated = with_template(tokenizer, "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template)
    framing = make_framing(kind, dated, system=None, probe="who?", today=date(2025, 3, 31))
    assert framing.prompt("who?").text.startswith("31 Mar 2025<|im_start|>")
    assert make_framing(kind, dated, system=None, probe="who?").prompt("who?").text.startswith("01 Jan 2026")
