"""What a learner of a model of some shape takes, what of it one micro-batch, and how many layers must recompute for it.

Arithmetic of the plan and of the learner itself; no torch. Tests compare it with torch's own account.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verl.learner.config import LearnerConfig, LoraConfig
from verl.learner.holdings import BYTES, Counts, holdings, logits_bytes
from verl.learner.phase import Phase
from verl.model_shape import ModelShape

CONTEXT_BYTES = 3 << 28
"""What CUDA's context and its libraries take for each process on a card: 0.75 GiB."""
MARGIN = 0.1
"""Of a card, what ``gradient_checkpointing=auto`` leaves free: what is reckoned here is right to a tenth, and torch
keeps fragments that fit no other tensor, NCCL its buffers."""


def counts_of(learner: LearnerConfig, shape: ModelShape) -> Counts:
    """The weights of a learner of a model of this shape."""
    embeddings = shape.vocabulary * shape.hidden
    outside = embeddings * (1 if shape.tied else 2) + shape.hidden
    return Counts(
        policy=shape.parameters,
        adapters=_adapter_parameters(learner.lora, shape) if learner.lora else 0,
        critic=shape.parameters - outside + embeddings + 2 * shape.hidden,
        layer=shape.layer_parameters,
        outside=outside + shape.beside,
        untrained=shape.beside,
    )


def _adapter_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """Adapters on the linear layers of the decoder that are named, or all: rank x (inputs + outputs) each."""
    hidden, kv, ffn = shape.hidden, shape.kv_heads * shape.head_size, shape.ffn
    ends = {"q_proj": 2 * hidden, "k_proj": hidden + kv, "v_proj": hidden + kv, "o_proj": 2 * hidden}
    ends |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), hidden + ffn)
    return lora.rank * sum(size for name, size in ends.items() if name in (lora.targets or ends)) * shape.layers


def layer_bytes(learner: LearnerConfig, shape: ModelShape) -> tuple[int, int]:
    """What one layer keeps of a micro-batch for the backward pass: all that it needs there, or its input alone.

    All are the four inputs and results of its norms and sums, queries, keys and values, two of attention's results,
    and some of the MLP's width.
    """
    width, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    wide = learner.max_tokens_per_microbatch * BYTES[learner.compute_dtype]
    return wide * (4 * shape.hidden + 3 * width + 2 * kv + _gated_kept(learner)[0] * shape.ffn), wide * shape.hidden


def kept_bytes(learner: LearnerConfig, shape: ModelShape) -> tuple[int, int]:
    """What all layers keep of one micro-batch: when the last has computed, and at most on the way back.

    Those that are computed again are the first: when their turn comes, what the others kept is gone, and one of them
    after the other stands in its place. Were they the last, what one makes again would stand beside all the rest.
    """
    whole, inputs = layer_bytes(learner, shape)
    again = learner.recomputed(shape.layers)
    keeping = shape.layers - again
    return again * inputs + keeping * whole, again * inputs + max(keeping, 1) * whole


def _gated_kept(learner: LearnerConfig) -> tuple[int, int]:
    """How many tensors of the MLP's width a layer keeps, and how many stand beside those on the way back.

    ``gated`` keeps two and makes the product again; an adapter on the last product leaves the model's own.
    """
    lora = learner.lora
    return (4, 2) if lora is not None and "down_proj" in (lora.targets or ("down_proj",)) else (2, 4)


def working_bytes(learner: LearnerConfig, shape: ModelShape, *, on_gpu: bool) -> dict[str, int]:
    """What one micro-batch takes, by part, when it takes most: in the head, back through a layer, at the end.

    A weight's gradient is made in the precision that is computed in and kept in full; those of head and embeddings are
    added and reduced at the end.
    """
    full, half = BYTES[learner.parameter_dtype], BYTES[learner.compute_dtype]
    kept, on_the_way = kept_bytes(learner, shape)
    head, both = shape.vocabulary * shape.hidden, full + (half if half < full else 0)
    logits = logits_bytes(learner, shape.vocabulary, on_gpu=on_gpu)
    back = _gated_kept(learner)[1] * learner.max_tokens_per_microbatch * half * shape.ffn
    moments = (
        (kept, logits, head * both),
        (on_the_way + back, 0, shape.layer_parameters * full + head * half),
        (0, 0, 2 * both * head * (1 if shape.tied else 2)),
    )
    names = ("activations", "logits", "gradients on their way")
    found = [dict(zip(names, moment, strict=True)) for moment in moments]
    if learner.lora is not None:
        found = [parts | {"gradients on their way": 0} for parts in found]
    return max(found, key=lambda parts: sum(parts.values()))


def taken_bytes(learner: LearnerConfig, shape: ModelShape, phase: Phase, ranks: int, *, on_gpu: bool) -> dict[str, int]:
    """What a rank takes on its device at its most, by part: held, for a batch, for a micro-batch or a step."""
    parts: dict[str, int] = {}
    stepping = 0
    for name, part in holdings(learner, phase, counts_of(learner, shape), ranks).items():
        parts[name] = (0 if part.on_host and on_gpu else part.held) + part.computing
        stepping += part.stepping
    working = working_bytes(learner, shape, on_gpu=on_gpu)
    # Moments that come for the step alone find activations and logits gone.
    return parts | (working if sum(working.values()) >= stepping else {"moments, for a step": stepping})


def layers_to_recompute(
    learner: LearnerConfig, shape: ModelShape, phases: Sequence[Phase], ranks: int, room_bytes: int
) -> int:
    """The fewest layers to compute again so that a rank takes no more than that of its card in any of these phases.

    Where no number is enough, the fewest with which it takes least.
    """

    def most(layers: int) -> int:
        trying = replace(learner, gradient_checkpointing=layers)
        return max(sum(taken_bytes(trying, shape, phase, ranks, on_gpu=True).values()) for phase in phases)

    taken = [most(layers) for layers in range(shape.layers + 1)]
    return next((layers for layers, size in enumerate(taken) if size <= room_bytes), taken.index(min(taken)))
