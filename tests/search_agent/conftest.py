"""A small real tokenizer, with merges over the end of a tag, a chat template and special tokens."""

from __future__ import annotations

from typing import Any

import pytest

_TEXT = [
    "<think> who wrote it </think> <search> the first book </search>\n",
    "<refine> it was written by mara </refine> <answer> mara </answer>\n\n",
    "<documents>Doc 1(Title: a book) the first book was written by mara .\n</documents>\n\n",
    "<information> Doc 2 </information> <result> text </result> Question: who?\n",
]
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE that merges ``>`` with the newline after it; ``<|im_end|>`` ends a turn."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    # One pre-token for a run of punctuation with its newlines, as the tokenizers of Qwen and Llama 3 have it.
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT * 20, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = _CHATML
    wrapped.name_or_path = "toy-model"
    return wrapped
