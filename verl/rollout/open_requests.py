"""What an engine's open requests have so far.

vLLM's own front end makes text of every token, and objects of every step, for whoever reads along. Here nobody does: a
token is two numbers in two lists until its request ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl.errors import InfrastructureError
from verl.rollout.interfaces import Generation
from verl.rollout.stop_strings import StopFinder, StopStrings
from verl.trajectory import FinishReason

ENDS = ("stop", "length")
"""Why a request ends by itself, in vLLM's words."""


@dataclass(slots=True)
class TokenCounts:
    """What finished requests amounted to."""

    generated: int = 0
    prompt: int = 0
    cached_prompt: int = 0
    """Prompt tokens whose keys and values were found in the prefix cache."""


@dataclass(slots=True)
class _Open:
    prompt_tokens: int
    finder: StopFinder | None
    cached: int | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Of the tokens before the newest weights; the rest are theirs."""

    def label(self, version: int) -> None:
        """What has no version yet was sampled by this one."""
        self.versions += [version] * (len(self.token_ids) - len(self.versions))

    def take(self, output: Any) -> str | None:
        """One step's tokens (one, as a rule); returns the stop string that ends the request."""
        if self.cached is None and output.prefill_stats is not None:
            self.cached = output.prefill_stats.num_cached_tokens
        for token, logprob in zip(output.new_token_ids, _sampled(output), strict=True):
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            if self.finder is not None and (stop := self.finder.found(self.token_ids)) is not None:
                return stop
        return None


class OpenRequests:
    """Open requests by key. It is told of every change of the weights, between two steps."""

    def __init__(self, tokenizer: Any) -> None:
        self.version = 0
        """Of the weights that sample now."""
        self.tokens = TokenCounts()
        self._tokenizer = tokenizer
        self._stops = StopStrings(tokenizer)
        self._open: dict[str, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, key: str, prompt_tokens: int, stop: Sequence[str]) -> None:
        """A request was queued."""
        self._open[key] = _Open(prompt_tokens, self._stops.of(tuple(stop)) if stop else None)

    def forget(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that were open, and are no more."""
        return [key for key in keys if self._open.pop(key, None) is not None]

    def begin_version(self, version: int) -> None:
        """Tokens from now on are of other weights."""
        for request in self._open.values():
            request.label(self.version)
        self.version = version

    def take(self, outputs: Iterable[Any]) -> tuple[list[tuple[str, Generation]], list[str]]:
        """One step's ``EngineCoreOutput`` of vLLM: the requests that ended, and those of them that it must be told of.

        vLLM knows of the token that ends a turn and of lengths, not of stop strings. Raises InfrastructureError if it
        ended one for any other reason: what it wrote so far is no turn of the policy's.
        """
        ended, untold = [], []
        for output in outputs:
            request = self._open.get(output.request_id)
            if request is None:  # given up, or past its end
                continue
            stop = request.take(output)
            if stop is None and output.finish_reason is None:
                continue
            if output.finish_reason is None:
                untold.append(output.request_id)
            elif stop is None and str(output.finish_reason) not in ENDS:
                raise InfrastructureError(f"vLLM ended request {output.request_id} as {output.finish_reason}")
            del self._open[output.request_id]
            ended.append((output.request_id, self._generation(request, stop, str(output.finish_reason))))
        return ended, untold

    def _generation(self, request: _Open, stop: str | None, finished: str) -> Generation:
        self.tokens.generated += len(request.token_ids)
        self.tokens.prompt += request.prompt_tokens
        self.tokens.cached_prompt += request.cached or 0
        request.label(self.version)
        reason: FinishReason = "length"
        if stop is not None:
            reason = "stop"
        elif finished == "stop":
            reason = "end_of_turn"
        # The token that completes a stop string is kept whole, and so is its text.
        text = self._tokenizer.decode(request.token_ids, skip_special_tokens=False)
        return Generation(request.token_ids, text, request.logprobs, request.versions, reason, stop)


def _sampled(output: Any) -> list[float]:
    """The log-prob of each new token: of what vLLM gives for a position the first."""
    if output.new_logprobs is None:  # nothing was sampled: an error, or a request without tokens
        return []
    values: list[float] = output.new_logprobs.logprobs[:, 0].tolist()
    return values
