"""What a learner of a model of some shape takes: its weights by kind, and what one micro-batch takes while it is there.

Arithmetic of the plan and of the learner itself; no torch. Tests compare it with torch's own account.
"""

from __future__ import annotations

from verl.learner.config import LearnerConfig, LoraConfig
from verl.learner.holdings import BYTES, Counts, logits_bytes
from verl.model_shape import ModelShape


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


def kept_bytes(learner: LearnerConfig, shape: ModelShape) -> tuple[int, int]:
    """What all layers keep of one micro-batch for the backward pass, and what one makes again on the way.

    A layer keeps the four inputs and results of its norms and sums, queries, keys and values, two of attention's
    results, and some of the MLP's width; with checkpointing its input alone, until it makes the rest again.
    """
    width, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    wide = learner.max_tokens_per_microbatch * BYTES[learner.compute_dtype]
    layer = wide * (4 * shape.hidden + 3 * width + 2 * kv + _gated_kept(learner)[0] * shape.ffn)
    return (shape.layers * wide * shape.hidden, layer) if learner.gradient_checkpointing else (shape.layers * layer, 0)


def _gated_kept(learner: LearnerConfig) -> tuple[int, int]:
    """How many tensors of the MLP's width a layer keeps, and how many stand beside those on the way back.

    ``gated`` keeps two and makes the product again; an adapter on the last product leaves the model's own.
    """
    lora = learner.lora
    return (4, 2) if lora is not None and "down_proj" in (lora.targets or ("down_proj",)) else (2, 4)


def working_bytes(learner: LearnerConfig, shape: ModelShape, *, on_gpu: bool) -> dict[str, int]:
    """What one micro-batch takes, by part, when it takes most: in the head, back through a layer, at the end.

    A weight's gradient is made in the
    precision that is computed in and kept in full; those of head and embeddings are added and reduced at the end.
    """
    full, half = BYTES[learner.parameter_dtype], BYTES[learner.compute_dtype]
    kept, again = kept_bytes(learner, shape)
    head, both = shape.vocabulary * shape.hidden, full + (half if half < full else 0)
    logits = logits_bytes(learner, shape.vocabulary, on_gpu=on_gpu)
    back = _gated_kept(learner)[1] * learner.max_tokens_per_microbatch * half * shape.ffn
    moments = (
        (kept, logits, head * both),
        (kept + again + back, 0, shape.layer_parameters * full + head * half),
        (0, 0, 2 * both * head * (1 if shape.tied else 2)),
    )
    names = ("activations", "logits", "gradients on their way")
    found = [dict(zip(names, moment, strict=True)) for moment in moments]
    if learner.lora is not None:
        found = [parts | {"gradients on their way": 0} for parts in found]
    return max(found, key=lambda parts: sum(parts.values()))
