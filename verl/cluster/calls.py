"""Calls to other processes, awaited: one that can be a task, and many of which the first error ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any


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
