"""A Hugging Face ColBERT: texts to a vector for each token, as ColBERT (Khattab and Zaharia, SIGIR 2020) makes them.

A marker token after the first says whether the text is a query or a passage; a query is filled up with masks, whose
vectors count; punctuation of a passage does not. Read from the files of ColBERT itself (``linear.weight`` among the
weights, ``artifact.metadata``) or of PyLate (``1_Dense``, ``config_sentence_transformers.json``). Importing this module
imports torch and transformers.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoModel

from search_agent.retrieval.backends.encoder import Model, by_length
from search_agent.retrieval.config import RerankConfig
from verl.errors import UserError

BATCH_TEXTS = 32
QUERY_TOKENS = 32
DATA_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.metadata"]
"""What is fetched from the hub: data, no code."""
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Convention:
    """How a model marks and masks its texts."""

    query_marker: str = "[unused0]"
    passage_marker: str = "[unused1]"
    attend_to_masks: bool = False
    """Whether other tokens of a query see the masks that fill it up."""
    skipped: tuple[str, ...] = tuple(string.punctuation)
    """Symbols of a passage whose vectors do not count."""


class Colbert(Model):
    """One model, in float32 on a CPU and float16 on a GPU."""

    def __init__(self, model: str, query_tokens: int, passage_tokens: int, key: str) -> None:
        self._query_tokens, self._passage_tokens = query_tokens, passage_tokens
        super().__init__(AutoModel.from_pretrained, model, key, "a ColBERT")
        self.dimensions = int(self._projection.shape[0])
        marks = (self._convention.query_marker, self._convention.passage_marker)
        self._markers = [self._id_of(mark, model, key) for mark in marks]
        self._skipped = torch.tensor(sorted(self._ids_of(self._convention.skipped)), device=self._device)

    def _find(self, model: str) -> str:
        return model if Path(model).is_dir() else snapshot_download(model, allow_patterns=DATA_FILES)

    def _read(self, folder: str) -> None:
        self._projection = _projection(Path(folder)).to(self._device, self._model.dtype)
        self._convention = _convention(Path(folder))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """``[texts, query tokens, dimensions]`` float32, each vector of length 1."""
        parts = [self._queries(list(texts[start : start + BATCH_TEXTS])) for start in range(0, len(texts), BATCH_TEXTS)]
        return np.concatenate(parts) if parts else np.zeros((0, self._query_tokens, self.dimensions), np.float32)

    def encode_passages(self, texts: Sequence[str]) -> list[Vectors]:
        """``[tokens that count, dimensions]`` float32 for each text, each vector of length 1."""
        out: list[Vectors] = [np.zeros((0, self.dimensions), np.float32)] * len(texts)
        for chosen in by_length(texts, BATCH_TEXTS):
            for number, vectors in zip(chosen, self._passages([texts[n] for n in chosen]), strict=True):
                out[number] = vectors
        return out

    def _queries(self, texts: list[str]) -> Vectors:
        ids, mask = self._inputs(texts, self._query_tokens, self._markers[0], padding="max_length")
        ids[mask == 0] = self._tokenizer.mask_token_id
        return self._vectors(ids, torch.ones_like(mask) if self._convention.attend_to_masks else mask).cpu().numpy()

    def _passages(self, texts: list[str]) -> list[Vectors]:
        ids, mask = self._inputs(texts, self._passage_tokens, self._markers[1])
        counted = (mask == 1) & ~torch.isin(ids, self._skipped)
        rows = zip(self._vectors(ids, mask).cpu().numpy(), counted.cpu().numpy(), strict=True)
        return [row[kept] for row, kept in rows]

    def _inputs(
        self, texts: list[str], max_tokens: int, marker: int, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask ``[texts, tokens]`` with the marker in second place."""
        inputs = self._tokens(texts, max_length=max_tokens - 1, **options)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        marks = torch.full_like(ids[:, :1], marker)
        ids = torch.cat([ids[:, :1], marks, ids[:, 1:]], 1)
        return ids, torch.cat([mask[:, :1], torch.ones_like(marks), mask[:, 1:]], 1)

    @torch.inference_mode()
    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize((states @ self._projection.T).float(), dim=-1)

    def _id_of(self, marker: str, model: str, key: str) -> int:
        number = self._tokenizer.convert_tokens_to_ids(marker)
        if number is None or number == self._tokenizer.unk_token_id or self._tokenizer.mask_token_id is None:
            raise UserError(f"{key}.model: {model} has no token {marker!r}, or no mask, and so is no ColBERT")
        return int(number)

    def _ids_of(self, symbols: Sequence[str]) -> set[int]:
        alone = {self._tokenizer.convert_tokens_to_ids(symbol) for symbol in symbols}
        coded = {self._tokenizer.encode(symbol, add_special_tokens=False)[0] for symbol in symbols}
        return {int(number) for number in alone | coded if number not in (None, self._tokenizer.unk_token_id)}


class ColbertJudge:
    """Scores passages by MaxSim: the best match of each query token, summed. See ``rerank.Judge``."""

    def __init__(self, config: RerankConfig) -> None:
        self._model = Colbert(config.model, QUERY_TOKENS, config.max_tokens, "rerank")
        self.dtype = self._model.dtype
        with self._model.reads(config.max_tokens):
            self.judge(["0 " * QUERY_TOKENS], [["0 " * config.max_tokens]])

    def judge(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """See ``rerank.Judge``; a passage that several queries found is encoded once."""
        unique = {text: number for number, text in enumerate(dict.fromkeys(t for texts in passages for t in texts))}
        vectors = self._model.encode_passages(list(unique))
        rows = zip(self._model.encode_queries(queries), passages, strict=True)
        return [[max_sim(query, vectors[unique[text]]) for text in texts] for query, texts in rows]


def max_sim(query: Vectors, passage: Vectors) -> float:
    """``[query tokens, dimensions]`` and ``[tokens, dimensions]`` to the sum of the best inner products."""
    return float((query @ passage.T).max(1).sum())


def _projection(folder: Path) -> torch.Tensor:
    """``[dimensions, hidden]``: what makes the small vectors. Raises KeyError or ValueError if there is none."""
    dense = folder / "1_Dense"
    if dense.is_dir():
        settings = json.loads((dense / "config.json").read_text())
        if settings.get("bias") or "Identity" not in settings.get("activation_function", "Identity"):
            raise ValueError("its projection is not a plain linear one")
        if settings.get("use_residual") or (folder / "2_Dense").exists():
            raise ValueError("its projection has several layers")
        folder = dense
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            if "linear.weight" in weights.keys():  # noqa: SIM118 (it is no mapping)
                tensor: torch.Tensor = weights.get_tensor("linear.weight")
                return tensor
    for file in sorted(folder.glob("pytorch_model*.bin")):
        held: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if "linear.weight" in held:
            return held["linear.weight"].clone()
    raise KeyError("its weights hold no linear.weight")


def _convention(folder: Path) -> Convention:
    """What the model's files say; ColBERTv2's own where they say nothing."""
    ours, pylate = folder / "artifact.metadata", folder / "config_sentence_transformers.json"
    if ours.exists():
        said = json.loads(ours.read_text())
        return Convention(
            said.get("query_token_id", "[unused0]"),
            said.get("doc_token_id", "[unused1]"),
            bool(said.get("attend_to_mask_tokens", False)),
            tuple(string.punctuation) if said.get("mask_punctuation", True) else (),
        )
    if pylate.exists():
        said = json.loads(pylate.read_text())
        return Convention(
            said.get("query_prefix", "[Q] "),
            said.get("document_prefix", "[D] "),
            bool(said.get("attend_to_expansion_tokens", False)),
            tuple(said.get("skiplist_words", string.punctuation)),
        )
    return Convention()
