"""The weight file: what goes in comes out, and nothing else passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verl.errors import InfrastructureError
from verl.sync import WeightUpdate
from verl.sync.file import mapped_weights, publish
from verl.sync.relay import release

WEIGHTS = {
    "embed": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "norm": torch.tensor([1.5], dtype=torch.bfloat16),
    "transposed": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "scalar": torch.tensor(7.0, dtype=torch.float64),
    "empty": torch.empty(0, 5),
}


def read(update: WeightUpdate) -> dict[str, Tensor]:
    with mapped_weights(update) as weights:
        return {name: tensor.clone() for name, tensor in weights}


def test_tensors_come_back_as_they_were_sent(tmp_path: Path) -> None:
    update = publish(WEIGHTS.items(), 3, tmp_path / "new")
    received = read(update)
    assert list(received) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        torch.testing.assert_close(received[name], tensor, rtol=0, atol=0)
        assert received[name].dtype == tensor.dtype
    assert update.version == 3
    assert [file.name for file in (tmp_path / "new").iterdir()] == [Path(update.path).name]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=5), st.sampled_from(["float32", "bfloat16", "int8"]))
def test_any_shapes_survive(tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: str) -> None:
    weights = {f"w{i}": torch.randn(shape).to(getattr(torch, dtype)) for i, shape in enumerate(shapes)}
    update = publish({"first": torch.ones(1), **weights}.items(), 0, tmp_path_factory.mktemp("carrier"))
    received = read(update)
    assert all(torch.equal(received[name], tensor) for name, tensor in weights.items())


def test_release_removes_the_file_and_open_mappings_stay_valid(tmp_path: Path) -> None:
    update = publish(WEIGHTS.items(), 1, tmp_path)
    with mapped_weights(update) as weights:
        release(update)
        assert not any(tmp_path.iterdir())
        assert torch.equal(dict(weights)["embed"], WEIGHTS["embed"])
    release(update)


def test_a_damaged_or_exchanged_file_is_refused(tmp_path: Path) -> None:
    update = publish(WEIGHTS.items(), 1, tmp_path)
    content = bytearray(Path(update.path).read_bytes())
    Path(update.path).write_bytes(content[:-1])
    with pytest.raises(InfrastructureError, match="cut short"):
        read(update)
    content[5] ^= 1
    Path(update.path).write_bytes(content)
    with pytest.raises(InfrastructureError, match="checksum"):
        read(update)
    with pytest.raises(InfrastructureError, match="cannot be read"):
        read(replace(update, path=str(tmp_path / "gone")))


def test_a_failing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, Tensor]]:
        yield "embed", WEIGHTS["embed"]
        raise OSError("No space left on device")

    with pytest.raises(InfrastructureError, match="No space left"):
        publish(failing(), 1, tmp_path)
    assert not any(tmp_path.iterdir())
