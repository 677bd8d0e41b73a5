"""A client of servers that speak OpenAI's API (vLLM, SGLang, vendors): completions of text or token ids, and chat.

What servers of open models say beyond the API (the ids of what was generated, the stop string that ended it) is asked
for, and no longer asked for where a server refuses to be asked. Retries are those of ``search_agent.retrieval.http``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from search_agent.retrieval.backends.http import secret
from search_agent.retrieval.http import Http, excerpt
from verl.data.pictures import picture_bytes, remote
from verl.errors import InfrastructureError, UserError

_CONNECTIONS = 256
_REFUSED = (400, 422)
_MOST_STOPS = 4
"""Stop strings that a server takes which has refused more of them: OpenAI's own bound."""
_BEYOND = {"include_stop_str_in_output": True}


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and under which name."""

    urls: tuple[str, ...]
    """Addresses up to ``/v1``; several serve the same model, and take turns."""
    model: str
    key_variable: str = ""
    """The environment variable that holds the key; empty: no key is sent."""
    timeout_s: float = 600.0
    """For one attempt (seconds)."""
    retries: int = 4
    """Further attempts after a failure that may pass."""

    def __post_init__(self) -> None:
        wrong = [url for url in self.urls if not url.startswith(("http://", "https://"))]
        if wrong or not self.urls:
            raise UserError(f"endpoint={','.join(self.urls)}: write http://HOST:PORT/v1, several with commas")
        if not self.model:
            raise UserError("endpoint_model= is missing: write the name that the server knows its model by")


@dataclass(frozen=True)
class Draw:
    """How text is drawn."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    """-1: all tokens; sent only where it is another number, since OpenAI's own API has no such field."""
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    """Answers to the one prompt."""
    logprobs: bool = False
    """Whether to ask for the log-probability of each token (completions alone)."""

    def to_json(self) -> dict[str, Any]:
        """The fields of a request."""
        said: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        said |= {"stop": list(self.stop)} if self.stop else {}
        said |= {"seed": self.seed} if self.seed is not None else {}
        said |= {"n": self.n} if self.n != 1 else {}
        return said | ({"top_k": self.top_k} if self.top_k > 0 else {})


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    text: str
    """With the stop string that ended it, where the server says which one did."""
    finish_reason: str
    """``stop`` or ``length``, or what else the server calls it."""
    stop: str | None = None
    """The stop string that ended it; None where none did, or where the server does not say."""
    token_ids: tuple[int, ...] | None = None
    """None where the server does not say."""
    logprobs: tuple[float, ...] | None = None
    thought: str = ""
    """What the model thought, where the server tells it apart from the text."""
    prompt_tokens: int = 0
    """Of the whole reply, as the server bills it; 0 where it does not say."""
    generated_tokens: int = 0
    """Of the whole reply, all its answers together."""


class Refused(UserError):
    """The server finds fault with a request, now and later: too long, or not allowed."""


class OpenAIClient:
    """An asynchronous context manager; calls may be made in any number at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises UserError if the key's variable is not set."""
        self._endpoint = endpoint
        key = secret(endpoint.key_variable, "endpoint_key")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._strict = False
        """Whether the server knows OpenAI's own fields alone."""
        self._few_stops = False
        """Whether it has refused more stop strings than four: then the others are found here, in what it wrote."""

    async def __aenter__(self) -> OpenAIClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._http = Http(self._session, self._endpoint.urls, self._endpoint.retries)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._session.close()

    async def complete(self, prompt: str | Sequence[int], draw: Draw) -> list[Completion]:
        """``draw.n`` continuations of a text, or of token ids.

        Raises UserError if the server refuses the request, InfrastructureError if it does not answer.
        """
        beyond = _BEYOND if isinstance(prompt, str) else {**_BEYOND, "return_token_ids": True}
        asked = {"prompt": prompt if isinstance(prompt, str) else list(prompt), **draw.to_json()}
        return await self._ask("/completions", asked | ({"logprobs": 0} if draw.logprobs else {}), draw, beyond)

    async def chat(self, messages: Sequence[Mapping[str, Any]], draw: Draw) -> list[Completion]:
        """``draw.n`` replies to a conversation; an assistant's message at its end is continued, where servers can.

        A message's content is a text, or a list of parts (``picture``). Raises as ``complete`` does.
        """
        asked: dict[str, Any] = {"messages": list(messages), **draw.to_json()}
        if messages and messages[-1]["role"] == "assistant":
            asked |= {"continue_final_message": True, "add_generation_prompt": False}
        return await self._ask("/chat/completions", asked, draw, _BEYOND)

    async def _ask(
        self, path: str, asked: Mapping[str, Any], draw: Draw, beyond: Mapping[str, Any]
    ) -> list[Completion]:
        beyond = {} if self._strict else beyond
        request = {"model": self._endpoint.model, **asked, **beyond}
        many = len(draw.stop) > _MOST_STOPS and not self._few_stops
        if self._few_stops and draw.stop:
            request["stop"] = list(draw.stop[:_MOST_STOPS])
        reply = await self._http.exchange("POST", path, orjson.dumps(request), self._headers)
        if reply.status in _REFUSED and beyond and any(name.encode() in reply.raw for name in beyond):
            self._strict = True
            return await self._ask(path, asked, draw, {})
        if reply.status in _REFUSED and many and b"stop" in reply.raw:
            self._few_stops = True
            return await self._ask(path, asked, draw, beyond)
        if reply.status != 200:
            kind = Refused if reply.status in (*_REFUSED, 413) else UserError
            raise kind(f"endpoint: POST {path} was refused with status {reply.status}: {excerpt(reply.raw)}")
        try:
            answers = [
                _completion(choice, draw.stop, reply.json.get("usage") or {}) for choice in reply.json["choices"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise InfrastructureError(f"endpoint: {path} answers as no such server does ({error!r})") from error
        if len(answers) != draw.n:
            raise InfrastructureError(f"endpoint: {path} gave {len(answers)} answers, {draw.n} were asked for")
        return answers


def picture(image: str) -> dict[str, Any]:
    """The part of a message that shows an image: a path, or a URL, which the server fetches if it is an address.

    Raises UserError unless it is a picture: no other file of this machine is sent.
    """
    if not remote(image):
        held, kind = picture_bytes(image)
        image = f"data:image/{kind.lower()};base64,{base64.b64encode(held).decode()}"
    return {"type": "image_url", "image_url": {"url": image}}


def _completion(choice: Mapping[str, Any], stops: Sequence[str], usage: Mapping[str, Any]) -> Completion:
    """One of a reply's ``choices``: its text stands in a message, or by itself."""
    message = choice.get("message") or {}
    text = message.get("content") if message else choice["text"]
    told = choice.get("stop_reason") or choice.get("matched_stop")  # vLLM's word, SGLang's word
    stop = told if isinstance(told, str) and told in stops else None
    text = text or ""
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if stop is not None and not text.endswith(stop):
        text += stop
    ends = [begin + len(one) for one in stops if (begin := text.find(one)) >= 0]
    if ends and (min(ends) < len(text) or stop is None):  # one that the server was not told, or passed over
        text, ids, choice = text[: min(ends)], None, {**choice, "finish_reason": "stop"}
        stop = next(one for one in stops if text.endswith(one))
    return Completion(
        text,
        str(choice.get("finish_reason")),
        stop,
        None if ids is None else tuple(map(int, ids)),
        None if logprobs is None else tuple(map(float, logprobs)),
        message.get("reasoning_content") or message.get("reasoning") or "",  # the words of vLLM, old and new
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )
