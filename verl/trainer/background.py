"""Work that the loop need not wait for: on one thread, one piece after the other, and no error is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Background:
    """At most one piece of work is under way; the next begins when it is done."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._under_way: asyncio.Future[None] | None = None

    async def begin(self, work: Callable[[], None]) -> None:
        """Start ``work``, after what was begun before it. Raises what that raised."""
        await self.settle()
        self._under_way = asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def settle(self) -> None:
        """Wait for what is under way. Raises what it raised, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            await under_way
