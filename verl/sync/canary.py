"""After each sync: do engine and learner hold the same weights? Fingerprints are compared bit for bit, then answers.

A sync can fail without an error (a packed copy left behind, a shard not sent, another version loaded), and training
then goes on, off-policy, and even seems to learn. Fingerprints tell which tensor is another one. What they cannot see
(numbers that changed places, a layer that computes from an old copy) shows in the log-probs of a few fixed tokens.

Two sides that round differently disagree a little. In float32 that stays below ``_FLOAT32_NATS``; in half precision
both round each logit, and one step of the largest logits is what a token may be off by. A wrong tensor shifts the mean
of all tokens by more than that, at once; one token beyond three steps may be rounding once, and is a fault where it
comes back version after version.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from verl.errors import InfrastructureError
from verl.sync import Sums

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ENDS = (EMBEDDINGS, HEAD)
"""Divided among tensor-parallel ranks by whole rows, so that the sums of the ranks add up to the whole's."""

Probe = Sequence[tuple[int, float, float]]
"""One side's answer to the canary's prompts: the most likely next token, its log-prob, its lead over the second (0
where it does not know)."""

PATIENCE = 3
"""Versions in a row on which single tokens may disagree in half precision."""
_TOKEN_STEPS = 3
_FLOAT32_NATS = 5e-5
_SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11}


def rounding_nats(dtype: str, vocabulary: int) -> float:
    """What rounding alone can move a log-prob by, in nats.

    A distribution over ``vocabulary`` tokens that is sure of one has logits of up to twice its logarithm; in half
    precision their distance is that power of two over the significant bits (bfloat16 at 24: 0.125).
    """
    if dtype not in _SIGNIFICANT_BITS:
        return _FLOAT32_NATS
    return 2.0 ** (math.floor(math.log2(2 * math.log(max(vocabulary, 3)))) + 1 - _SIGNIFICANT_BITS[dtype])


class Canary:
    """The fixed prompts, and what the learner said of them with the newest weights. One for a run."""

    def __init__(self, prompts: Sequence[Sequence[int]], *, dtypes: Collection[str], vocabulary: int) -> None:
        """``dtypes`` are those that engines and learner compute in: whichever rounds more sets the bound."""
        self.prompts = prompts
        self._bound = max(rounding_nats(dtype, vocabulary) for dtype in dtypes)
        exact = _SIGNIFICANT_BITS.keys().isdisjoint(dtypes)
        self._token_bound = (2 if exact else _TOKEN_STEPS) * self._bound
        self._patience = 1 if exact else PATIENCE
        self._version = -1
        self._learner: Probe = ()
        self._doubtful: dict[str, int] = {}
        self._in_doubt: set[str] = set()

    def expect(self, version: int, learner: Probe) -> None:
        """From now on engines hold ``version``, of which the learner says this."""
        self._doubtful = {who: count for who, count in self._doubtful.items() if who in self._in_doubt}
        self._in_doubt = set()
        self._version, self._learner = version, learner

    def check(self, who: str, engine: Probe) -> None:
        """Compare the answer of the engine ``who``. Raises InfrastructureError, with the likely cause."""
        if len(engine) != len(self._learner):
            raise ValueError("the two answers are not to the same prompts")
        diffs = [abs(ours[1] - theirs[1]) for ours, theirs in zip(engine, self._learner, strict=True)]
        mean, worst = sum(diffs) / len(diffs), max(diffs)
        said = f"engine and learner differ by {worst:.3g} (max) and {mean:.3g} (mean) nats"
        if math.isnan(mean):
            raise self._error(who, f"{said}: the weights sent or the engine's activations are not finite")
        if mean > self._bound:
            raise self._error(
                who,
                f"{said}, allowed are {self._bound:.3g} (mean): too much for rounding; some of its weights are others, "
                "or it computes from a copy that was not renewed",
            )
        others = self._other_tokens(engine)
        if worst <= self._token_bound and not others:
            return
        self._note_doubt(who, f"{said}, allowed are {self._token_bound:.3g}" + others)

    def _other_tokens(self, engine: Probe) -> str:
        """Which greedy tokens differ though the learner's lead is no tie."""
        pairs = enumerate(zip(engine, self._learner, strict=True))
        others = [number for number, (a, b) in pairs if a[0] != b[0] and b[2] > self._token_bound]
        return f"; the greedy tokens of prompts {others} differ, by sampler, vocabulary or weights" if others else ""

    def _note_doubt(self, who: str, said: str) -> None:
        if who not in self._in_doubt:
            self._in_doubt.add(who)
            self._doubtful[who] = self._doubtful.get(who, 0) + 1
        times = self._doubtful[who]
        if times >= self._patience:
            raise self._error(who, f"{said}, on {times} versions in a row")
        log.warning("warning: canary, weights version %d: %s: %s", self._version, who, said)

    def _error(self, who: str, said: str) -> InfrastructureError:
        return InfrastructureError(f"canary: after the sync of weights version {self._version} to {who}: {said}")


class Fingerprint:
    """Names, shapes, dtypes and the sum of all bits of each tensor, in order.

    It tells a tensor that is missing, stale, cut short or damaged, not numbers that changed places within one. One
    reduction a tensor where it is, and one number a tensor to the host at the end.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, tuple[str, str, Tensor]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Count a tensor in; it is not kept."""
        import torch

        word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        total = tensor.detach().contiguous().reshape(-1).view(word).sum(dtype=torch.int64)
        self._tensors[name] = (f"{name} {tuple(tensor.shape)} {tensor.dtype}", str(tensor.dtype), total)

    def sums(self) -> dict[str, tuple[str, int]]:
        """Of each tensor. Streams on which tensors were added must have been waited for."""
        import torch

        if not self._tensors:
            return {}
        totals = torch.stack([total for _, _, total in self._tensors.values()]).tolist()
        rows = zip(self._tensors.items(), totals, strict=True)
        return {name: (dtype, int(total)) for (name, (_, dtype, _)), total in rows}

    def value(self) -> int:
        """CRC-32 of all that was added, in order."""
        sums = self.sums()
        lines = [f"{head} {sums[name][1]}" for name, (head, _, _) in self._tensors.items()]
        return zlib.crc32("\n".join(lines).encode())


def check_loaded(sent: Sums, ranks: Sequence[Mapping[str, tuple[str, int]]], version: int) -> None:
    """Whether the parameters of an engine, by its ranks, hold what was sent.

    Of several ranks embeddings and head alone are compared; all parameters where both sides know them by one name and
    dtype (vLLM fuses some). A head that was not sent is tied. Raises InfrastructureError that names tensor and version.
    """
    expected = dict(sent)
    if EMBEDDINGS in sent:
        expected.setdefault(HEAD, sent[EMBEDDINGS])
    for name, (dtype, total) in expected.items():
        if name not in ranks[0] or ranks[0][name][0] != dtype or (len(ranks) > 1 and name not in ENDS):
            continue
        loaded = sum(rank[name][1] for rank in ranks)
        if (loaded - total) % 2**64:
            raise InfrastructureError(
                f"weights version {version}: the engine holds another {name} than was sent (sum of bits "
                f"{loaded:x}, not {total:x}): it kept an old copy, or a part of it"
            )
