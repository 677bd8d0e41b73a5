"""A small tokenizer and a small Qwen2, made from a seed: no download, the same bytes each time.

Invariant: ``AutoTokenizer.from_pretrained`` on the written folder gives the ids that the tokenizer was trained to give.
It holds because the training uses Qwen2's own pre-tokenizer, which is what AutoTokenizer puts in place for a Qwen2
model whatever ``tokenizer.json`` says; it is checked at each build, because otherwise rollouts and training would
silently read different tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
END_OF_MESSAGE = "<|im_end|>"
CHAT_TOKENS = ("<|im_start|>", END_OF_MESSAGE)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_POSITION = 1024


def train_tokenizer(texts: Iterable[str], folder: Path, vocabulary: int = 1536) -> PreTrainedTokenizerBase:
    """Train byte-level BPE on ``texts``, write it to ``folder`` and return it as AutoTokenizer reads it back.

    ``vocabulary`` is an upper bound (tokens): training ends earlier when every word of the texts is one token.
    Raises RuntimeError if the ids it gives for ``texts`` are not those of the tokenizer that was trained.
    """
    from tokenizers import Tokenizer, models, trainers
    from transformers import AutoTokenizer, Qwen2Tokenizer

    corpus = list(texts)
    shell = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer, trained.decoder = shell.normalizer, shell.pre_tokenizer, shell.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, *CHAT_TOKENS],
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer)

    # The ids of the special tokens are those of the vocabulary, so that adding them again changes nothing.
    model = _model_of(trained)
    written = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    written.add_special_tokens({"additional_special_tokens": list(CHAT_TOKENS)})
    written.chat_template = CHAT_TEMPLATE
    written.model_max_length = MAX_POSITION
    written.save_pretrained(str(folder))

    loaded = AutoTokenizer.from_pretrained(str(folder))
    _verify(trained, loaded, sorted(set(corpus)))
    return loaded


def write_model(folder: Path, vocabulary: int, seed: int, *, ends: Sequence[int] = (), **shape: int) -> int:
    """Write a randomly initialised tiny Qwen2 in Hugging Face format; returns its number of parameters.

    ``ends`` are ids that end a turn, besides that of the end of a text.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    config = Qwen2Config(
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_POSITION,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=True,
        **{
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 256,
            **shape,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[0, *ends] if ends else 0, pad_token_id=0, do_sample=True, temperature=1.0
    )
    disable_progress_bar()
    model.save_pretrained(str(folder))
    return sum(parameter.numel() for parameter in model.parameters())


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _model_of(tokenizer: Any) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _verify(trained: Any, loaded: Any, texts: Sequence[str]) -> None:
    expected = [encoding.ids for encoding in trained.encode_batch(list(texts), add_special_tokens=False)]
    given = loaded(list(texts), add_special_tokens=False)["input_ids"]
    wrong = [text for text, a, b in zip(texts, expected, given, strict=True) if a != b]
    if wrong:
        raise RuntimeError(
            f"AutoTokenizer gives other ids than the trained tokenizer for {len(wrong)} of {len(texts)} texts, "
            f"first {wrong[0]!r}: this version of transformers changes the tokenizer on loading"
        )
