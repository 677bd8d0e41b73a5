"""Text to vectors by a Hugging Face encoder, used in the way its makers trained it.

Importing this module imports torch and transformers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
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


class Model:
    """A model of the hub and its tokenizer, on the GPU if there is one; any number of threads."""

    def __init__(self, load: Callable[..., Any], model: str, key: str, kind: str, *, half: bool = True) -> None:
        """``load`` makes it; with ``half`` it computes in float16 on a GPU. Raises UserError if it is no ``kind``."""
        self._name, self._key = model, key
        self._lock = threading.Lock()  # a fast tokenizer raises when two threads use it at once
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if half and self._device.type == "cuda" else torch.float32
        self.dtype = str(dtype).removeprefix("torch.")
        """What it computes in: vectors differ a little between a GPU and a CPU."""
        try:
            folder = self._find(model)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = load(folder, dtype=dtype).to(self._device).eval()
            self._read(folder)
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{key}.model: {model} cannot be loaded as {kind}: {first}; give a folder or a hub name"
            ) from error

    def _find(self, model: str) -> str:
        """Where the model lies, for ``transformers``."""
        return model

    def _read(self, folder: str) -> None:
        """Read what else its files hold. Raises KeyError or ValueError if they are those of another kind of model."""

    def _tokens(self, *texts: list[str], **options: Any) -> Any:
        """Token ids and attention mask, ``[texts, tokens]``, on the model's device."""
        with self._lock:
            inputs = self._tokenizer(*texts, **{"padding": True, "truncation": True, **options}, return_tensors="pt")
        return inputs.to(self._device)

    @contextmanager
    def reads(self, max_tokens: int) -> Iterator[None]:
        """So many tokens are tried at the start: later it would fail on what somebody asks. Raises UserError."""
        try:
            yield
        except (IndexError, RuntimeError, ValueError) as error:
            fault = f"{self._key}.max_tokens: {self._name} cannot read {max_tokens} tokens"
            raise UserError(f"{fault} ({str(error).splitlines()[0][:200]}); give fewer") from error


def by_length(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The numbers of the texts, ``size`` at a time, texts of like length together: padding costs as much as text."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    return (order[start : start + size] for start in range(0, len(order), size))


class Encoder(Model):
    """One model, in float32 on a CPU and float16 on a GPU."""

    def __init__(self, config: EncoderConfig, key: str = "dense") -> None:
        super().__init__(AutoModel.from_pretrained, config.model, key, "an encoder")
        self.convention = CONVENTIONS[config.family]
        self._max_tokens = config.max_tokens
        self.dimensions = int(self._model.config.hidden_size)
        with self.reads(config.max_tokens):
            self.encode_queries(["0 " * config.max_tokens])

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """``[texts, dimensions]`` float32."""
        return self._encode([self.convention.query_prefix + text for text in texts])

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        """``[texts, dimensions]`` float32."""
        return self._encode([self.convention.passage_prefix + text for text in texts])

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Vectors:
        out = np.zeros((len(texts), self.dimensions), np.float32)
        for chosen in by_length(texts, BATCH_TEXTS):
            out[chosen] = self._encode_batch([texts[index] for index in chosen])
        return out

    def _encode_batch(self, texts: list[str]) -> Vectors:
        inputs = self._tokens(texts, max_length=self._max_tokens)
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
