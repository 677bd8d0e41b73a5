"""An engine in a process of its own, as weights find it: on the sender's card or on another one, through a pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from verl.errors import EngineDiedError
from verl.rollout.engine_config import EngineConfig

SHARED_MEMORY = "/dev/shm"


class EngineProcess:
    """Calls of a ``VllmEngine``; it stands when the first call returns."""

    def __init__(self, model: Path, config: EngineConfig, *, card: str | None = None, sleeps: bool = False) -> None:
        """``card`` is what CUDA shows the process, if that is not what this one sees."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, str(model), config, card, sleeps)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the engine's method answers; raises what it raised, EngineDiedError if the process is gone."""
        try:
            self._pipe.send((method, arguments))
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineDiedError(f"the engine's process ended during {method}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, model: str, config: EngineConfig, card: str | None, sleeps: bool) -> None:
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    from verl.rollout.engine import VllmEngine

    try:
        engine = VllmEngine(model, config, seed=0, sleeps=sleeps)
    except Exception as error:
        pipe.recv()
        pipe.send(EngineDiedError(f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = asyncio.run(_call(engine, method, arguments))
        except Exception as error:
            answer = EngineDiedError(f"{method}: {type(error).__name__}: {error}")
        pipe.send(answer)
    asyncio.run(engine.close())


async def _call(engine: Any, method: str, arguments: tuple[Any, ...]) -> Any:
    return await getattr(engine, method)(*arguments)


def ask(method: str, calls: Mapping[str, tuple[Any, dict[str, Any]]]) -> Iterator[tuple[str, Exception | None]]:
    """``verl.sync.gpu.Ask`` of one engine."""
    for name, (engine, arguments) in calls.items():
        try:
            engine.call("transfer", method, arguments)
        except EngineDiedError as error:
            yield name, error
        else:
            yield name, None


def syncs(engine: EngineProcess, carrier: str, model: Path, dtype: str, pushes: int) -> tuple[float, float]:
    """Median seconds of a push, the first left out, and the GiB of one; other weights each time.

    Each push ends with the engine comparing what it holds with what was sent, bit by bit (of a file: in the embeddings
    and the head); it raises if they differ.
    """
    import torch
    from transformers import AutoModelForCausalLM

    on = "cpu" if carrier == "shm" and not torch.cuda.is_available() else "cuda"
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to(on)
    size = sum(weight.numel() * weight.element_size() for weight in lm.parameters())
    push, seconds = _pusher(engine, carrier, lm), []
    for version in range(1, pushes + 1):
        with torch.no_grad():
            for weight in lm.parameters():
                weight.add_(torch.randn_like(weight), alpha=1e-2)
        if on == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        push(version)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), size / 2**30


def _pusher(engine: EngineProcess, carrier: str, lm: Any) -> Any:
    if carrier == "shm":
        from verl.sync.file import publish
        from verl.sync.relay import release

        def by_file(version: int) -> None:
            update = publish(lm.named_parameters(), version, SHARED_MEMORY)
            try:
                engine.call("update_weights", update, version)
            finally:
                release(update)

        return by_file

    from verl.cluster.processes import free_port
    from verl.sync.gpu import GpuSender

    def weights() -> Iterator[tuple[str, Any]]:
        return ((name, weight.detach()) for name, weight in lm.named_parameters())

    sender = GpuSender(carrier, weights, ask, rank=0, free_port=lambda: ("127.0.0.1", free_port()))

    def from_card(version: int) -> None:
        engine.call("pause")
        sent = sender.send({"engine": engine}, 1)
        engine.call("commit_received", version, sent)
        engine.call("resume")

    return from_card
