"""From a Hugging Face folder to a sharded model on every rank.

Weights are made without memory (meta device), sharded by FSDP2, and then each rank reads its own rows from the
safetensors files: no rank ever holds a full copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from verl.data.pictures import KIND, Pictures
from verl.errors import UserError
from verl.learner.adapter import add_adapter, init_adapter, saved_name
from verl.learner.attention import PACKED
from verl.learner.config import LearnerConfig
from verl.learner.distributed import Layout
from verl.learner.fused import fuse
from verl.learner.model import PackedModel, PolicyModel, ValueModel
from verl.learner.parts import decoder_of, reads_pictures
from verl.learner.ulysses import SequenceSplit

# Keys of model configs that change logits after the LM head: not implemented, and silence would be wrong.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")

NewWeight = Callable[[str, torch.Size], Tensor | None]
"""The whole initial weight of a parameter that no file has; None for one to be read."""


def load_policy(model_path: Path, config: LearnerConfig, layout: Layout) -> PolicyModel:
    """The policy that ``model_path`` describes, sharded over all ranks, with its weights (and fresh adapters).

    Raises UserError where the folder is no such model, or one whose logits this code would get wrong.
    """
    lm = _empty_lm(_read_config(model_path), config)
    lora = config.lora
    if lora is not None:
        add_adapter(lm, lora)
    model = _policy_model(lm, model_path, config, layout)
    _shard(model, config, layout)

    def new_weight(name: str, shape: torch.Size) -> Tensor | None:
        return None if lora is None or saved_name(name) else init_adapter(name, shape, lora.seed)

    _read_weights(model, model_path, new_weight)
    return model


def load_reference(model_path: Path, config: LearnerConfig, layout: Layout) -> PolicyModel:
    """The frozen policy of ``model_path``, in the precision that is computed in: a pass would round it so anyway.

    It is scored with once a batch: where anything is offloaded, it lies in host memory.
    """
    lm = _empty_lm(_read_config(model_path), config, config.compute_dtype)
    model = _policy_model(lm, model_path, config, layout)
    _shard(model, replace(config, offload="none" if config.offload == "none" else "all"), layout)
    model.requires_grad_(False)
    _read_weights(model, model_path, lambda name, shape: None)
    return model


def _policy_model(lm: PreTrainedModel, model_path: Path, config: LearnerConfig, layout: Layout) -> PolicyModel:
    full = config.head_dtype == "float32" or (config.head_dtype == "auto" and layout.device.type == "cuda")
    pictures = Pictures.of(model_path)
    return PolicyModel(lm, config.max_logits_mib, _split(lm, layout), pictures, full_head=full)


def load_value_model(model_path: Path, config: LearnerConfig, layout: Layout) -> ValueModel:
    """A critic with the decoder of ``model_path``; its head starts at 0, and so do all values."""
    hf_config = _read_config(model_path)
    if hf_config.model_type == KIND:
        raise UserError(f"{model_path}: a critic reads text alone; write trainer.advantage.name=grpo")
    hf_config.tie_word_embeddings = False
    lm = _empty_lm(hf_config, config)
    with init_empty_weights(include_buffers=False):
        head = nn.Linear(hf_config.hidden_size, 1, bias=False, dtype=getattr(torch, config.parameter_dtype))
    lm.set_output_embeddings(head)
    model = ValueModel(lm, _split(lm, layout))
    _shard(model, config, layout)

    def new_weight(name: str, shape: torch.Size) -> Tensor | None:
        return torch.zeros(shape) if name == "lm_head.weight" else None

    _read_weights(model, model_path, new_weight)
    return model


def _read_config(model_path: Path) -> PreTrainedConfig:
    if not (model_path / "config.json").is_file():
        raise UserError(f"{model_path}: no config.json there; give a Hugging Face model folder")
    hf_config = AutoConfig.from_pretrained(model_path)
    for key in _LOGIT_TRANSFORMS:
        if getattr(hf_config, key, None) not in (None, 1, 1.0):
            raise UserError(f"{model_path}: its config has {key}, which the learner does not support")
    return hf_config


def _empty_lm(hf_config: PreTrainedConfig, config: LearnerConfig, dtype: str | None = None) -> PreTrainedModel:
    """The model without weights, but with its buffers (rotary frequencies), which no file has."""
    kind: Any = AutoModelForCausalLM
    attention: Any = PACKED
    if hf_config.model_type == KIND:
        kind, attention = AutoModelForImageTextToText, {"text_config": PACKED, "vision_config": "sdpa"}
    with init_empty_weights(include_buffers=False):
        lm: PreTrainedModel = kind.from_config(
            hf_config, attn_implementation=attention, dtype=getattr(torch, dtype or config.parameter_dtype)
        )
    lm.tie_weights()  # making each weight empty also made tied weights two
    lm.train()
    return lm


def recompute_layers(lm: PreTrainedModel, count: int) -> None:
    """From now on the first ``count`` decoder layers keep their input alone, and compute again on the way back.

    Random state is put back for that only where something draws; attention's dropout is refused elsewhere.
    """
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in lm.modules())
    if count:
        lm.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": draws})
    for place, layer in enumerate(decoder_of(lm).layers):
        layer.gradient_checkpointing = place < count


def _shard(model: PackedModel, config: LearnerConfig, layout: Layout) -> None:
    """FSDP2 on each decoder layer and on the rest. Gradients are summed over ranks: a loss is a share of a sum.

    On one rank nothing is freed between passes, since it would be copied back from the same memory.
    """
    fuse(model.lm)  # here, as layers that have got adapters stay as they are
    parameter_dtype = getattr(torch, config.parameter_dtype)
    precision = MixedPrecisionPolicy(param_dtype=getattr(torch, config.compute_dtype), reduce_dtype=parameter_dtype)
    reshard = layout.mesh.size() > 1
    whole = config.offload == "all"
    offload = CPUOffloadPolicy(pin_memory=layout.device.type == "cuda") if whole else OffloadPolicy()
    for module in (*decoder_of(model.lm).layers, model):
        # What lies outside the layers is needed last in the forward pass and first in the backward pass: it stays.
        freed = reshard and module is not model
        fully_shard(module, mesh=layout.mesh, mp_policy=precision, reshard_after_forward=freed, offload_policy=offload)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device="cpu" if whole else layout.device)
    for name, buffer in buffers.items():  # needed where is computed, whatever becomes of the weights
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, buffer.to(layout.device))
    for name, parameter in model.lm.named_parameters(remove_duplicate=True):
        assert isinstance(parameter, DTensor)
        model.weights[name] = parameter


@torch.no_grad()
def _read_weights(model: PackedModel, model_path: Path, new_weight: NewWeight) -> None:
    files = _weight_files(model_path)
    for name, parameter in model.weights.items():
        fresh = new_weight(name, parameter.shape)
        if fresh is not None:
            fill(parameter, fresh)
            continue
        source = saved_name(name) or name
        if source not in files:
            raise UserError(f"{model_path}: no weight named {source} in its safetensors files")
        with safe_open(files[source], "pt") as handle:
            stored = handle.get_slice(source)
            if list(stored.get_shape()) != list(parameter.shape):
                raise UserError(
                    f"{files[source]}: {source} is {stored.get_shape()}, its config says {list(parameter.shape)}"
                )
            fill(parameter, stored)


def _split(lm: PreTrainedModel, layout: Layout) -> SequenceSplit | None:
    """How tokens lie on neighbours. Raises UserError where the model has not enough heads for them."""
    if layout.sequence_group is None:
        return None
    if reads_pictures(lm):
        raise UserError(f"learner.sequence_ranks={layout.sequence_ranks}: a model that reads pictures takes 1")
    heads: int = lm.config.num_attention_heads
    if heads % layout.sequence_ranks:
        raise UserError(
            f"learner.sequence_ranks={layout.sequence_ranks} does not divide {heads} attention heads: write a divisor"
        )
    return SequenceSplit(layout.sequence_group, layout.sequence_rank, layout.sequence_ranks)


def _weight_files(model_path: Path) -> dict[str, Path]:
    """Which safetensors file holds each weight."""
    index = model_path / "model.safetensors.index.json"
    if index.is_file():
        return {name: model_path / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    single = model_path / "model.safetensors"
    if not single.is_file():
        raise UserError(f"{model_path}: no model.safetensors there; save the model in safetensors format")
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single)


def fill(parameter: DTensor, whole: Any) -> None:
    """Copy this rank's rows of ``whole``, a tensor or a slice of a file: FSDP2 splits rows as ``torch.chunk`` does.

    Rows lie over the last dimension of the mesh; over a first one there are copies.
    """
    mesh, placement = parameter.device_mesh, parameter.placements[-1]
    assert isinstance(placement, Shard)
    assert placement.dim == 0
    last = mesh.ndim - 1
    rows = -(-parameter.shape[0] // mesh.size(last))
    start = min(mesh.get_local_rank(last) * rows, parameter.shape[0])
    local = parameter.to_local()
    if len(local):
        local.copy_(whole[start : start + len(local)])
