"""Processes that share a card start one after the other, in the turns that they take later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from search_agent.launch import after_engines


async def test_a_learner_loads_on_a_shared_card_when_engines_stand_and_sleep() -> None:
    happened: list[str] = []

    class Pool:
        async def ready(self) -> None:
            happened.append("engines ready")

        @asynccontextmanager
        async def resting(self) -> AsyncIterator[None]:
            happened.append("asleep")
            yield
            happened.append("awake")

    async def start() -> str:
        happened.append("learner loads")
        return "learner"

    pool: Any = Pool()
    assert await after_engines(pool, start) == "learner"
    assert happened == ["engines ready", "asleep", "learner loads", "awake"]
