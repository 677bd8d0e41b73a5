"""Text to vectors by a Hugging Face encoder, used in the way its makers trained it.

Importing this module imports torch and transformers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from search_agent.retrieval.config import EncoderConfig
from verl.errors import UserError

BATCH_TEXTS = 64
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Convention:
    """How a family of encoders is to be used."""

    pooling: Literal["mean", "cls"]
    """Which of the last hidden states is the vector: their mean over the text's tokens, or that of the first token."""
    normalise: bool
    """Whether vectors are scaled to length 1, so that the inner product is the cosine."""
    query_prefix: str = ""
    passage_prefix: str = ""


CONVENTIONS = {
    "e5": Convention("mean", True, "query: ", "passage: "),
    "bge": Convention("cls", True, "Represent this sentence for searching relevant passages: "),
    "contriever": Convention("mean", False),
    "minilm": Convention("mean", True),
}


@contextmanager
def refused(fault: str) -> Iterator[None]:
    """What a model must be able to do, tried at the start: later it would fail on what somebody asks.

    Raises UserError with ``fault`` if it fails.
    """
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{fault} ({str(error).splitlines()[0][:200]}); give fewer") from error


class Encoder:
    """One model, in float32 on a CPU and float16 on a GPU."""

    def __init__(self, config: EncoderConfig, key: str = "dense") -> None:
        self.convention = CONVENTIONS[config.family]
        self._max_tokens = config.max_tokens
        self._lock = threading.Lock()  # a fast tokenizer raises when two threads use it at once
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(config.model)
            model: Any = AutoModel.from_pretrained(config.model, dtype=torch.float16 if on_gpu else torch.float32)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{key}.model: {config.model} cannot be loaded: {first}; give a folder or a hub name"
            ) from error
        self._model = model.to(self._device).eval()
        self.dimensions = int(model.config.hidden_size)
        self.dtype = str(model.dtype).removeprefix("torch.")
        """What it computes in: vectors differ a little between a GPU and a CPU."""
        with refused(f"{key}.max_tokens: {config.model} cannot read {config.max_tokens} tokens"):
            self.encode_queries(["0 " * config.max_tokens])

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """``[texts, dimensions]`` float32."""
        return self._encode([self.convention.query_prefix + text for text in texts])

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        """``[texts, dimensions]`` float32."""
        return self._encode([self.convention.passage_prefix + text for text in texts])

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Vectors:
        """Texts of like length share a batch: padding costs as much as text."""
        out = np.zeros((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), BATCH_TEXTS):
            chosen = order[start : start + BATCH_TEXTS]
            out[chosen] = self._encode_batch([texts[index] for index in chosen])
        return out

    def _encode_batch(self, texts: list[str]) -> Vectors:
        with self._lock:
            inputs = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
            )
        inputs = inputs.to(self._device)
        states = self._model(**inputs).last_hidden_state.float()
        if self.convention.pooling == "cls":
            vectors = states[:, 0]
        else:
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            vectors = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        if self.convention.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        result: Vectors = vectors.cpu().numpy()
        return result
