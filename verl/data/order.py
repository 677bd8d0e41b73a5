"""The order in which rows are used: every row once an epoch, each epoch shuffled anew, known from the number alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from verl.seeds import derive_seed

Row = TypeVar("Row")


class EpochOrder(Generic[Row]):
    """Place ``number`` (0, 1, 2, ... without end) in the order holds one row; nothing else needs saving to resume."""

    def __init__(self, rows: Sequence[Row], seed: int, name: str, *, distinct: int = 1) -> None:
        """``name`` keeps two orders of one run apart. Raises ValueError if there are no rows.

        Any ``distinct`` places in a row hold different rows, also where one epoch meets the next, provided that there
        are three times as many: a step that straddles two epochs then has no task twice.
        """
        if not rows:
            raise ValueError(f"there are no rows to order for {name}")
        self._rows = rows
        self._seed = (seed, name)
        self._distinct = distinct
        self._epoch = -1
        self._permutation: list[int] = []

    def __getitem__(self, number: int) -> Row:
        epoch, place = divmod(number, len(self._rows))
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._adjusted(epoch)
        return self._rows[self._permutation[place]]

    def take(self, start: int, count: int) -> list[Row]:
        """The rows at places ``start`` to ``start + count - 1``."""
        return [self[number] for number in range(start, start + count)]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = np.random.default_rng(derive_seed(*self._seed, epoch))
        return list(map(int, generator.permutation(len(self._rows))))

    def _adjusted(self, epoch: int) -> list[int]:
        """The epoch's permutation; rows that ended the epoch before move from its beginning to its middle.

        The end of an epoch stays as it was shuffled, so an epoch depends on the shuffle before it and on nothing else.
        """
        order, margin = self._shuffled(epoch), self._distinct - 1
        if epoch == 0 or margin == 0 or len(order) < 3 * self._distinct:
            return order
        recent = set(self._shuffled(epoch - 1)[-margin:])
        middle = (place for place in range(margin, len(order) - margin) if order[place] not in recent)
        for place in range(margin):
            if order[place] in recent:
                other = next(middle)
                order[place], order[other] = order[other], order[place]
        return order
