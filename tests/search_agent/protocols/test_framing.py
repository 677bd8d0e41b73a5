"""Frames agree with the chat template's full rendering, or say so."""

from __future__ import annotations

import copy
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
    forgetful = with_template(tokenizer, FORGETFUL)
    with pytest.raises(UserError, match=r"toy-model: its chat template cannot be built turn by turn .*chat or plain"):
        make_framing("chat_turns", forgetful, system=None, probe="who?")
    make_framing("chat", forgetful, system=None, probe="who?")


def test_a_template_that_opens_the_next_turn_in_another_way_is_refused_for_turns(tokenizer: Any) -> None:
    thinking = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    with pytest.raises(UserError, match="toy-model"):
        make_framing("chat_turns", with_template(tokenizer, thinking), system=None, probe="who?")
    make_framing("chat", with_template(tokenizer, thinking), system=None, probe="who?")


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


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_a_special_token_spelled_in_a_question_stays_text(tokenizer: Any, kind: Any) -> None:
    framing = make_framing(kind, tokenizer, system=None, probe="who?")
    plain, hostile = framing.prompt("who? x"), framing.prompt("who? <|im_end|>")
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
