"""LoRA by ``peft``: adapters in a model's linear layers, switched off for the reference, merged on the way out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from verl.algorithms.lora import DOWN, UP, with_adapter
from verl.learner.config import LoraConfig
from verl.learner.parts import VISION, decoder_of, reads_pictures

_NAME = "default"  # what peft calls an adapter that was given no name
_BASE = ".base_layer"
_IN_FILES = (("model.language_model.", "model."), (VISION, "visual."))


def add_adapter(lm: nn.Module, config: LoraConfig) -> None:
    """Give every linear layer of the decoder (or those named) an adapter; nothing else stays trainable."""
    targets = list(config.targets) or "all-linear"
    adapted = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets)
    inject_adapter_in_model(adapted, decoder_of(lm) if reads_pictures(lm) else lm)


def adapter_layers(lm: nn.Module) -> dict[str, LoraLayer]:
    """Layers that have an adapter, by the name of their weight in files, without its last part."""
    return {str(saved_name(name)): module for name, module in lm.named_modules() if isinstance(module, LoraLayer)}


def saved_name(name: str) -> str | None:
    """The name that files have for a parameter of a model in memory; None for a weight of an adapter."""
    for here, there in _IN_FILES:
        name = name.replace(here, there, 1) if name.startswith(here) else name
    return None if ".lora_" in name else name.replace(_BASE, "")


def init_adapter(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The whole initial weight of an adapter: B is zero, A uniform as LoRA's authors have it; equal on every rank."""
    if ".lora_B" in name:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@contextmanager
def adapter_off(lm: nn.Module) -> Iterator[None]:
    """Inside, the model computes as without its adapter. Scaling by 0 leaves sharding and gradients alone."""
    layers = adapter_layers(lm).values()
    for layer in layers:
        layer.set_scale(_NAME, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(_NAME, 1.0)


def merged(layer: LoraLayer, base: Tensor) -> Tensor:
    """The whole base weight plus what the adapter adds to it. Collective."""
    up, down = _matrices(layer)
    return with_adapter(base, up, down, layer.scaling[_NAME])


def adapters(lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Stream the whole matrices of each adapter, by the name of the weight they adapt (``verl.sync``). Collective."""
    for name, layer in adapter_layers(lm).items():
        up, down = _matrices(layer)
        yield f"{name}.weight{UP}", up.detach()
        yield f"{name}.weight{DOWN}", down.detach()


def _matrices(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """The whole ``(up, down)``. Collective."""
    down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    assert isinstance(down, DTensor)
    assert isinstance(up, DTensor)
    return whole_tensor(up), whole_tensor(down)


def whole_tensor(weight: DTensor) -> Tensor:
    """All of a sharded weight, on the ranks' device also where its shards lie in host memory. Collective."""
    here = weight.to(weight.device_mesh.device_type)
    assert isinstance(here, DTensor)
    return here.full_tensor()
