"""A model behind an endpoint as the engine that episodes are played with: by token continuation, or by chat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from search_agent.evaluation.chat_tokens import ChatTokens
from search_agent.openai_client import Completion, Draw, Endpoint, OpenAIClient, picture
from verl.config.compose import last_value
from verl.errors import UserError, at_least
from verl.rollout.interfaces import Generation, Sampling, Turn, refuse_images

Api = Literal["completions", "chat"]


@dataclass(frozen=True)
class Served:
    """What ``cmd/eval.sh`` is told of an endpoint."""

    endpoint: str
    """Addresses up to ``/v1``, with commas."""
    endpoint_model: str
    """The name that the server knows its model by."""
    endpoint_api: Api = "completions"
    """``completions`` continues token ids; ``chat`` sends messages, for servers that take nothing else."""
    endpoint_key: str = ""
    """The environment variable that holds the key."""
    endpoint_concurrency: int = 64
    """Episodes at once."""
    endpoint_seeds: bool = True
    """Whether sampled turns are asked for with seeds of their own, as engines here do; false for a server that takes
    none, or dies of them as vLLM's does on CPUs."""

    def __post_init__(self) -> None:
        if self.endpoint_api not in get_args(Api):
            raise UserError(f"endpoint_api={self.endpoint_api}: write {' or '.join(get_args(Api))}")
        at_least(self, 1, "endpoint_concurrency")
        self.address  # noqa: B018  (its faults are told before anything starts)

    @property
    def address(self) -> Endpoint:
        """As the client takes it."""
        return Endpoint(tuple(url.strip() for url in self.endpoint.split(",")), self.endpoint_model, self.endpoint_key)

    @property
    def played(self) -> dict[str, Any]:
        """What decides the answers: two evaluations that share it, and a configuration, are one."""
        return {"endpoint_model": self.endpoint_model, "endpoint_api": self.endpoint_api, "endpoint": self.endpoint} | (
            {} if self.endpoint_seeds else {"endpoint_seeds": False}
        )


def split_endpoint(arguments: Sequence[str]) -> tuple[Served | None, list[str]]:
    """The endpoint that ``endpoint=`` and its like name, if any, and the other arguments.

    Raises UserError on a value that is none, or where the address alone is missing.
    """
    names = [field.name for field in fields(Served)]
    given = {name: value for name in names if (value := last_value(arguments, name)) is not None}
    others = [argument for argument in arguments if argument.partition("=")[0] not in names]
    if not given:
        return None, others
    if "endpoint" not in given:
        raise UserError(f"{next(iter(given))} says something beside endpoint= only: write endpoint=http://HOST:PORT/v1")
    number = given.pop("endpoint_concurrency", "64")
    if not number.isdecimal():
        raise UserError(f"endpoint_concurrency={number}: write a whole number")
    seeds = given.pop("endpoint_seeds", "true")
    if seeds not in ("true", "false"):
        raise UserError(f"endpoint_seeds={seeds}: write true or false")
    told: dict[str, Any] = {"endpoint_model": "", **given, "endpoint_concurrency": int(number)}
    told["endpoint_seeds"] = seeds == "true"
    return Served(**told), others


class Continuing:
    """Implements ``verl.rollout.interfaces.Engine`` over ``/v1/completions``: ids go out, and come back where the
    server says them; else its text is read with the tokenizer that the prompt was written with."""

    def __init__(self, client: OpenAIClient, tokenizer: Any, *, seeds: bool = True) -> None:
        self._client, self._tokenizer, self._seeds = client, tokenizer, seeds

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """See ``Engine``. Raises UserError if the server refuses the request."""
        refuse_images(turn)
        [found] = await self._client.complete(
            token_ids, _draw(turn, sampling, seed if self._seeds else None, logprobs=True)
        )
        if found.token_ids is None:
            return read(found, turn.stop, self._tokenizer)
        ids = list(found.token_ids)
        return _generation(ids, self._tokenizer.decode(ids), found.logprobs, found, found.stop)


class Chatting:
    """Implements ``Engine`` over ``/v1/chat/completions``: the ids are those of ``ChatTokens``."""

    def __init__(self, client: OpenAIClient, tokenizer: ChatTokens, *, seeds: bool = True) -> None:
        self._client, self._tokenizer, self._seeds = client, tokenizer, seeds

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """See ``Engine``; pictures go before the text of the user's first message."""
        messages: list[dict[str, Any]] = list(self._tokenizer.messages(token_ids))
        if turn.images:
            first = next(message for message in messages if message["role"] == "user")
            first["content"] = [*map(picture, turn.images), {"type": "text", "text": first["content"]}]
        draw = _draw(turn, sampling, seed if self._seeds else None, logprobs=False)
        [found] = await self._client.chat(messages, draw)
        return read(found, turn.stop, self._tokenizer)


def read(found: Completion, stops: Sequence[str], tokenizer: Any) -> Generation:
    """A turn of which the text alone is known; its log-probabilities are NaN.

    Where the server cut the text at a stop string and does not say at which, it is the one that closes the tag which
    was opened last and is open.
    """
    stop = found.stop
    if stop is None and found.finish_reason == "stop":
        stop = cut_at(found.text, stops)
        found = Completion(found.text + (stop or ""), found.finish_reason, stop)
    ids = list(tokenizer(found.text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    return _generation(ids, found.text, None, found, stop)


def cut_at(text: str, stops: Sequence[str]) -> str | None:
    """The closing tag, of these stop strings, whose opening one is the last in ``text``; None if none is open."""
    tags = [match[1] for stop in stops if (match := re.fullmatch(r"</([^<>]+)>", stop))]
    opened = {tag: text.rfind(f"<{tag}>") for tag in tags}
    begin, tag = max(((begin, tag) for tag, begin in opened.items()), default=(-1, ""))
    return None if begin < 0 or f"</{tag}>" in text[begin:] else f"</{tag}>"


def _draw(turn: Turn, sampling: Sampling, seed: int | None, *, logprobs: bool) -> Draw:
    drawn = sampling.temperature > 0  # the most likely token needs no seed, and some servers refuse one
    return Draw(
        turn.max_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        turn.stop,
        seed if drawn else None,
        logprobs=logprobs,
    )


def _generation(
    ids: list[int], text: str, logprobs: Sequence[float] | None, found: Completion, stop: str | None
) -> Generation:
    known = logprobs if logprobs is not None and len(logprobs) == len(ids) else [float("nan")] * len(ids)
    ended = "length" if found.finish_reason == "length" else "end_of_turn" if stop is None else "stop"
    return Generation(ids, text, known, [0] * len(ids), ended, stop)  # type: ignore[arg-type]
