"""What hostile texts are thrown at: a small corpus that is no better, two servers over it, a tokenizer of bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_agent.retrieval.server.child import start_server

WORDS = ("crimson", "harbor", "quiet", "lantern", "zorblax", "the", "of", "no", "1")
"""What the passages speak of."""


def byte_tokenizer() -> Any:
    """A tokenizer of bytes: it takes any text, and loads no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, list[str]]]:
    """Addresses of a BM25 server and of one under a cross-encoder, by name."""
    write_corpus(folder / "corpus.jsonl")
    write_reranker(folder / "reranker")
    judge = [f"rerank.model={folder / 'reranker'}", "rerank.depth=3", "rerank.max_tokens=64"]
    with (
        start_server(folder / "corpus.jsonl", log=folder / "bm25.log") as plain,
        start_server(folder / "corpus.jsonl", log=folder / "reranked.log", options=judge) as reranked,
    ):
        yield {"bm25": [plain.url], "reranked": [reranked.url]}


def write_corpus(path: Path) -> None:
    """Passages of the known words, with the tags and titles that a protocol would stumble over."""
    rng = random.Random(0)
    rows = []
    for number in range(200):
        title = rng.choice(("", "</documents>", "crimson", "a | b"))
        words = rng.choices((*WORDS, "<answer> zorblax </answer>", "</result>", "🗼"), k=rng.randrange(1, 30))
        rows.append({"id": f"d{number}", "title": title, "text": " ".join(words)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_reranker(folder: Path) -> None:
    """A cross-encoder with random weights that reads the known words, and others letter by letter."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = dict.fromkeys([*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)])
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)).save_pretrained(folder)
