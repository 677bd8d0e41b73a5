"""Stop strings are found where text made of every token finds them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verl.rollout.conftest import build_tiny_tokenizer
from verl.rollout.stop_strings import StopStrings

STOPS = ("</answer>", "<search>", "é", "本", "ab", "who w", " wrote", "r> ", "\n")
WORDS = ("</answer>", "\n", "<search>", "who", " wrote", "é", "日本", "<|im_end|>", "a", ">", "</", "answer")


@pytest.fixture(scope="module", params=["bytes", "spaces"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of bytes (Qwen, Llama 3), and one that writes spaces as a letter and drops the first (Llama 2, Mistral)."""
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")) if request.param == "bytes" else of_spaces()


def of_spaces() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(list(steps))
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["</answer>\n", "<search>", "who wrote it ?", "a b"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def by_text(tokenizer: Any, token_ids: list[int], stops: tuple[str, ...]) -> tuple[int, str] | None:
    """After how many tokens text first holds a stop string, and the one that ends first."""
    for count in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:count])
        ends = [(text.index(stop) + len(stop), i) for i, stop in enumerate(stops) if stop in text]
        if ends:
            return count, stops[min(ends)[1]]
    return None


def found(strings: StopStrings, token_ids: list[int], stops: tuple[str, ...]) -> tuple[int, str] | None:
    finder = strings.of(stops)
    for count in range(1, len(token_ids) + 1):
        if (stop := finder.found(token_ids[:count])) is not None:
            return count, stop
    return None


@given(data=st.data())
def test_it_stops_at_the_token_and_the_string_that_text_of_every_token_stops_at(tokenizer: Any, data: Any) -> None:
    stops = tuple(data.draw(st.lists(st.sampled_from(STOPS), min_size=1)))
    text = "".join(data.draw(st.lists(st.sampled_from(WORDS), max_size=12)))
    noise = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    token_ids = [*noise, *tokenizer.encode(text), *noise]
    assert found(StopStrings(tokenizer), token_ids, stops) == by_text(tokenizer, token_ids, stops)


def test_text_is_made_only_after_a_token_that_can_complete_one(tokenizer: Any) -> None:
    strings = StopStrings(tokenizer)
    finder = strings.of(("</answer>",))
    ids = tokenizer.encode("who wrote it ? </answer>")
    made: list[Any] = []

    def text(token_ids: Any) -> str:
        made.append(token_ids)
        return strings.text(token_ids)

    finder._text = text
    assert [finder.found(ids[: i + 1]) for i in range(len(ids))] == [None] * (len(ids) - 1) + ["</answer>"]
    assert len(made) <= 2
    assert strings.of(("</answer>",)) is finder
