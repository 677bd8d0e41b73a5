"""A server of OpenAI's API over a scripted policy, as ``vllm serve`` answers; or a strict one, as vendors have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from search_agent.standins.serving import serve

Policy = Callable[[str], str]
"""What is written after a text: stop strings are the server's."""


@dataclass
class Scripted:
    """Counts what it was asked. ``tokenizer`` reads prompts of ids; ``strict`` refuses what OpenAI's API has not."""

    policy: Policy
    tokenizer: Any = None
    strict: bool = False
    key: str | None = None
    status: list[int] = field(default_factory=list)
    """Statuses of the next replies, in place of an answer."""
    most_stops: int | None = None
    """How many stop strings it takes; None: any number."""
    deaf: bool = False
    """Whether it passes stop strings over."""
    asked: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> str:
        """Serve; returns the address up to ``/v1``."""
        app = FastAPI()

        @app.post("/v1/completions")
        async def completions(request: Request) -> Any:
            return await self._answer(request, self._completion)

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            return await self._answer(request, self._reply)

        return f"{serve(app)}/v1"

    async def _answer(self, request: Request, make: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
        asked = await request.json()
        self.asked.append(asked)
        await asyncio.sleep(0)
        if self.status:
            return JSONResponse({"error": {"message": "not now"}}, self.status.pop(0))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        if self.strict and (more := {"return_token_ids", "include_stop_str_in_output"} & set(asked)):
            return JSONResponse({"error": {"message": f"Unrecognized request argument: {sorted(more)[0]}"}}, 400)
        if self.most_stops is not None and len(asked.get("stop", ())) > self.most_stops:
            return JSONResponse({"error": {"message": "stop: at most 4 strings", "param": "stop"}}, 400)
        return {"choices": [make(asked) for _ in range(asked.get("n", 1))]}

    def _completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        prompt = asked["prompt"]
        text, stop = self._stopped(prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt), asked)
        choice: dict[str, Any] = {"text": text, "finish_reason": "stop", "stop_reason": None if self.strict else stop}
        if asked.get("return_token_ids"):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            choice["token_ids"] = ids if stop else [*ids, self.tokenizer.eos_token_id]
            choice["logprobs"] = {"token_logprobs": [-0.5] * len(choice["token_ids"])}
        return choice

    def _reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        said = "".join(f"[{message['role']}]{message['content']}" for message in asked["messages"])
        text, stop = self._stopped(said, asked)
        message = {"role": "assistant", "content": text}
        return {"message": message, "finish_reason": "stop", "stop_reason": None if self.strict else stop}

    def _stopped(self, prompt: str, asked: dict[str, Any]) -> tuple[str, str | None]:
        text = self.policy(prompt)
        found = [(text.find(stop), stop) for stop in asked.get("stop", ()) if stop in text and not self.deaf]
        if not found:
            return text, None
        begin, stop = min(found)
        return text[: begin + (len(stop) if asked.get("include_stop_str_in_output") else 0)], stop
