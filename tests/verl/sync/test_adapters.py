"""Adapters on their way: what an engine ends up with is base + scale * up @ down, and it reads the base once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from verl.algorithms.lora import DOWN, UP, with_adapter
from verl.errors import InfrastructureError
from verl.sync import WeightUpdate
from verl.sync.file import HeldBase, load_file, publish

BASE = {"a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "norm.weight": torch.tensor([5.0, 6.0])}
ADAPTER = {f"a.weight{UP}": torch.tensor([[1.0], [2.0]]), f"a.weight{DOWN}": torch.tensor([[10.0, 20.0]])}
MERGED = torch.tensor([[6.0, 12.0], [13.0, 24.0]])  # base + 0.5 * up @ down


class Model:
    """Takes weights by name, as an engine's model does, and notes which came."""

    def __init__(self) -> None:
        self.weights = {name: torch.zeros_like(tensor) for name, tensor in BASE.items()}
        self.came: list[str] = []

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights.items()

    def parameters(self) -> Iterator[Tensor]:
        yield from self.weights.values()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        self.came = []
        for name, tensor in weights:
            self.weights[name].copy_(tensor)
            self.came.append(name)
        return set(self.came)


class Sender:
    """Publishes versions into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.base = self.base_of(BASE, 1)

    def base_of(self, weights: dict[str, Tensor], version: int) -> WeightUpdate:
        return publish(weights.items(), version, self._folder, "base")

    def adapters(self, version: int, matrices: dict[str, Tensor] = ADAPTER, **changes: Any) -> WeightUpdate:
        update = publish(matrices.items(), version, self._folder, "adapters")
        return replace(update, **{"base": self.base, "scale": 0.5, **changes})


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path)


def test_the_sum_is_taken_in_the_adapters_precision() -> None:
    base = torch.tensor([[1.0]], dtype=torch.bfloat16)
    total = with_adapter(base, torch.tensor([[1e-4]]), torch.tensor([[1.0]]), 1.0)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(1.0001)


def test_the_base_is_loaded_once_and_then_only_what_is_adapted(sender: Sender) -> None:
    model, held = Model(), HeldBase()
    load_file(model, sender.adapters(1), 1, held)
    assert sorted(model.came) == ["a.weight", "norm.weight"]
    assert torch.equal(model.weights["a.weight"], MERGED)
    assert torch.equal(model.weights["norm.weight"], BASE["norm.weight"])
    load_file(model, sender.adapters(2, scale=1.0), 2, held)
    assert model.came == ["a.weight"]
    assert torch.equal(model.weights["a.weight"], MERGED + MERGED - BASE["a.weight"]), (
        "added to the base, not to before"
    )


def test_another_base_or_whole_weights_in_between_are_loaded_whole(sender: Sender, tmp_path: Path) -> None:
    model, held = Model(), HeldBase()
    load_file(model, sender.adapters(1), 1, held)
    other = sender.base_of({name: -tensor for name, tensor in BASE.items()}, 2)
    load_file(model, sender.adapters(2, base=other), 2, held)
    assert torch.equal(model.weights["norm.weight"], -BASE["norm.weight"])
    load_file(model, publish({**BASE, "norm.weight": torch.zeros(2)}.items(), 3, tmp_path), 3, held)
    load_file(model, sender.adapters(4, base=other), 4, held)
    assert torch.equal(model.weights["norm.weight"], -BASE["norm.weight"])


@pytest.mark.parametrize(
    "matrices",
    [
        {f"a.weight{UP}": ADAPTER[f"a.weight{UP}"]},
        {f"a.weight{DOWN}": ADAPTER[f"a.weight{DOWN}"]},
        {f"other.weight{end}": ADAPTER[f"a.weight{end}"] for end in (UP, DOWN)},
        {**ADAPTER, "a.weight": BASE["a.weight"]},
    ],
    ids=["no down", "no up", "no such weight", "not an adapter"],
)
def test_an_adapter_that_fits_nothing_is_refused(sender: Sender, matrices: dict[str, Tensor]) -> None:
    model = Model()
    with pytest.raises(InfrastructureError, match="fits no weight of the base"):
        load_file(model, sender.adapters(1, matrices), 1, HeldBase())
    assert not model.weights["a.weight"].any()


def test_a_base_that_is_gone_or_lacks_a_parameter_is_refused(sender: Sender) -> None:
    with pytest.raises(InfrastructureError, match="cannot be read"):
        load_file(Model(), sender.adapters(1, base=replace(sender.base, path="/nowhere")), 1, HeldBase())
    half = sender.base_of({"a.weight": BASE["a.weight"]}, 5)
    with pytest.raises(InfrastructureError, match=r"norm\.weight"):
        load_file(Model(), sender.adapters(1, base=half), 1, HeldBase())
