"""Weights on their way out: streamed by Hugging Face name, hashed, or written as a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.distributed.tensor import DTensor

from verl.learner.adapter import adapter_layers, merged, saved_name, whole_tensor
from verl.learner.checkpoint import written_whole
from verl.learner.loading import fill
from verl.learner.model import PolicyModel

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)


def gathered(model: PolicyModel, dtype: torch.dtype, *, merge: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Each whole weight in turn, cast before it is gathered, so that fewer bytes travel. Collective.

    Adapters are merged into the weights they adapt (in full precision, cast afterwards); without ``merge`` left out.
    """
    layers = adapter_layers(model.lm) if merge else {}
    for name, parameter in model.weights.items():
        saved = saved_name(name)
        if saved is None:
            continue
        layer = layers.get(saved.removesuffix(".weight"))
        weight = parameter.detach() if layer is not None else parameter.detach().to(dtype)
        assert isinstance(weight, DTensor)
        whole = whole_tensor(weight)
        yield saved, whole if layer is None else merged(layer, whole).detach().to(dtype)


@torch.no_grad()
def copy_policy(policy: PolicyModel, target: Mapping[str, DTensor]) -> None:
    """Make the weights of another model, by the same names, those of the policy as it is now, adapters and all.

    What the other has besides (a critic's head) stays. The one way to start a model from the policy. Collective.
    """
    for name, whole in gathered(policy, next(iter(policy.weights.values())).dtype):
        if name in target and target[name].shape == whole.shape:
            fill(target[name], whole)


def hash_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hex digest of names, shapes and bytes, in order; on rank 0, the others take part in the gathers. Collective."""
    digest = hashlib.blake2b(digest_size=16)
    first = dist.get_rank() == 0
    for name, tensor in named:
        if not first:
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if first else ""


def collected(named: Iterable[tuple[str, Tensor]], *, copy: bool) -> dict[str, Tensor]:
    """The whole model in host memory, on rank 0; empty elsewhere. Without ``copy`` it may share the model's memory."""
    first = dist.get_rank() == 0
    return {name: tensor.to("cpu", copy=copy) for name, tensor in named if first}


def write_hf(
    folder: Path, source: Path, state: dict[str, Tensor], dtype: torch.dtype, group: dist.ProcessGroup | None = None
) -> None:
    """Write ``collected`` weights as a folder that ``from_pretrained`` and ``vllm serve`` load; collective.

    Config and tokenizer are those of ``source``.
    """
    with written_whole(folder, group) as partial:
        if dist.get_rank() != 0:
            return
        save_torch_state_dict(state, partial, metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copy2(source / name, partial / name)
