"""The group buffer: which groups may start, which must be waited for, which are trained on next.

Time is counted in weight versions: version v exists after v updates, and a step trained at version v makes v + 1.
A group started at version s has the deadline s + max_staleness: the last version at which it may be trained on.

* start: at version V, at most (V + max_staleness + 1) * groups_per_step groups have been started in all;
* take: finished groups, oldest first, but so that every later deadline can still be met: for each version W >= V,
  what stays behind with a deadline up to W must fit into the (W - V) steps that remain until then.

The start rule makes the second rule satisfiable: by deadline W at most (W + 1) * groups_per_step groups were started
and V * groups_per_step taken, the earliest deadlines among them. So no group is ever too old, none is lost, and a step
waits only for groups that are running. ``max_staleness=0`` is exactly on-policy: a step's groups start and end at
its own version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Slot(Generic[Item]):
    started_at: int
    item: Item | None = None


class GroupBuffer(Generic[Item]):
    """A pure state machine; group numbers 0, 1, 2, ... name the places in the task order."""

    def __init__(
        self, groups_per_step: int, max_staleness: int = 0, *, version: int = 0, total: int | None = None
    ) -> None:
        """``total`` groups are enough for the whole run: no more are started. None means without end."""
        if groups_per_step < 1 or max_staleness < 0:
            raise ValueError("groups_per_step must be at least 1 and max_staleness at least 0")
        self.groups_per_step = groups_per_step
        self.max_staleness = max_staleness
        self.version = version
        self._next = version * groups_per_step
        self._total = total
        self._slots: dict[int, _Slot[Item]] = {}

    def startable(self) -> list[int]:
        """The numbers of the groups that may start now, in order; the caller starts them all."""
        limit = (self.version + self.max_staleness + 1) * self.groups_per_step
        if self._total is not None:
            limit = min(limit, self._total)
        numbers = list(range(self._next, limit))
        self._next = max(self._next, limit)
        for number in numbers:
            self._slots[number] = _Slot(self.version)
        return numbers

    def finish(self, number: int, item: Item) -> None:
        """Group ``number`` is complete. Raises KeyError if it is not running, ValueError if it finished before."""
        slot = self._slots[number]
        if slot.item is not None:
            raise ValueError(f"group {number} finished twice")
        slot.item = item

    def ready(self) -> bool:
        """Whether a step's groups can be taken now."""
        return bool(self._plan()[0])

    def take(self) -> list[tuple[int, Item]]:
        """Remove and return one step's groups, ordered by number. Raises RuntimeError unless ``ready``."""
        chosen, missing = self._plan()
        if not chosen:
            raise RuntimeError(f"the next step waits for groups {missing or 'that have not been started'}")
        taken: list[tuple[int, Item]] = []
        for number in sorted(chosen):
            item = self._slots.pop(number).item
            assert item is not None
            taken.append((number, item))
        return taken

    def advance(self) -> None:
        """The taken groups have been trained on: the weights have a new version."""
        self.version += 1

    def outstanding(self) -> list[int]:
        """Groups started and not yet taken: what a resumed run starts again."""
        return sorted(self._slots)

    def restore(self, outstanding: Iterable[int], next_number: int) -> list[int]:
        """Continue after a restart: these groups were started and not trained on. Returns them, to be started again.

        They start anew at the current version, so their age only falls and the bound still holds.
        """
        self._next = next_number
        self._slots = {number: _Slot(self.version) for number in sorted(outstanding)}
        return list(self._slots)

    @property
    def next_number(self) -> int:
        """The number of the first group that was never started."""
        return self._next

    def _plan(self) -> tuple[list[int], list[int]]:
        """(groups to take now, []) or ([], the running groups that are in the way)."""
        chosen: list[int] = []
        for horizon in range(self.max_staleness + 1):
            due = [
                n
                for n, slot in sorted(self._slots.items())
                if slot.started_at + self.max_staleness - self.version <= horizon
            ]
            # Steps after this one, up to the horizon, can take the rest; at the last horizon the step just fills up.
            must_take = len(due) - horizon * self.groups_per_step
            if horizon == self.max_staleness:
                must_take = self.groups_per_step
            spare = [n for n in due if n not in chosen and self._slots[n].item is not None]
            chosen += spare[: max(0, must_take - len(chosen))]
            if len(chosen) < must_take:
                return [], [n for n in due if self._slots[n].item is None]
        return chosen, []
