"""Calls to other processes: one that can be a task, many of which the first error ends all, many told one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any

from verl.cluster.ray_runtime import first_cause, has_died
from verl.errors import EngineDiedError


async def answer(call: Awaitable[Any]) -> Any:
    """What a call answers. As a coroutine, which asyncio takes in more places than Ray's references."""
    return await call


async def all_or_first_error(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """The answers in order. At the first error the other calls are cancelled, awaited, and it is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def ask_engines(method: str, calls: Mapping[str, tuple[Any, dict[str, Any]]]) -> Iterator[tuple[str, Exception | None]]:
    """Call ``transfer`` on all engines at the same time, and wait: names as they answer, with what kept one from it."""
    import ray

    names = {engine.transfer.remote(method, arguments): name for name, (engine, arguments) in calls.items()}
    waiting = list(names)
    while waiting:
        (done,), waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(done)
        except Exception as error:
            cause = first_cause(error, f"{names[done]} {method}", [])
            yield names[done], EngineDiedError(str(cause)) if has_died(error) else cause
        else:
            yield names[done], None
