"""Every number of a run's configuration has a range, and what lies outside of it is refused before anything starts."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from search_agent.config import RunConfig
from search_agent.console.command import load_config
from verl.config.build import build, to_dict
from verl.errors import UserError

_LORA = "learner.lora={rank: 4}"
CONFIG = to_dict(load_config(["recipe=quickstart_ppo", "trainer.loss.kl_coefficient=0.1", _LORA]))


def numbers(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from numbers(value, (*path, key))
    if isinstance(data, int | float) and not isinstance(data, bool):
        yield path


def changed(path: tuple[Any, ...], value: float) -> dict[str, Any]:
    data = node = copy.deepcopy(CONFIG)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = type(node[path[-1]])(value)
    return data  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", list(numbers(CONFIG)), ids=lambda path: ".".join(map(str, path)))
def test_a_number_outside_its_range_is_refused_by_its_name(path: tuple[Any, ...]) -> None:
    is_float = isinstance(_at(path), float)
    infinite = [math.inf] if is_float and path[-1] != "grad_clip" else []
    below = -2 if path[-1] == "top_k" else -1  # where -1 is all tokens
    for wrong in (below, *([math.nan, -math.inf] if is_float else []), *infinite):
        with pytest.raises(UserError) as error:
            build(RunConfig, changed(path, wrong))
        name = ".".join(key for key in path if isinstance(key, str))
        lines = [re.sub(r"\[\d+\]", "", line) for line in str(error.value).splitlines()]
        assert any(re.match(rf"{re.escape(name)}\b", line) for line in lines), str(error.value)


def test_no_clipping_is_infinity() -> None:
    assert (
        build(RunConfig, changed(("trainer", "optimizer", "grad_clip"), math.inf)).trainer.optimizer.grad_clip
        == math.inf
    )


def _at(path: tuple[Any, ...]) -> Any:
    node = CONFIG
    for key in path:
        node = node[key]
    return node
