"""What a sequence costs to train on, by formula: used to balance ranks and to report utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from verl.data.samples import TrainingSample
from verl.learner.parts import decoder_of

# A matmul of the forward pass has two in the backward pass.
_PASSES = 3


@dataclass(frozen=True, slots=True)
class FlopsModel:
    """Sizes of a dense decoder that its matmuls depend on."""

    layer_weights: int
    """Weights of all matrices inside decoder layers."""
    attention_width: int
    """Heads x head dimension, summed over layers."""
    head_weights: int
    """Weights of the LM head."""

    @classmethod
    def of(cls, lm: PreTrainedModel) -> FlopsModel:
        """Count them in a model (sharded or not)."""
        layers: nn.ModuleList = decoder_of(lm).layers
        config = lm.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            layer_weights=sum(p.numel() for p in layers.parameters() if p.dim() == 2),
            attention_width=config.num_attention_heads * head_dim * len(layers),
            head_weights=config.hidden_size * config.vocab_size,
        )

    def training_flops(self, tokens: int, policy_tokens: int) -> float:
        """Multiplications and additions of forward and backward of one sequence; the head only where it runs.

        Causal attention has two matmuls of tokens^2 / 2 x width each. Recomputation is not counted.
        """
        forward = 2 * (
            self.layer_weights * tokens + self.attention_width * tokens**2 + self.head_weights * policy_tokens
        )
        return float(_PASSES * forward)

    def cost(self, sample: TrainingSample) -> float:
        """``training_flops`` of a sample."""
        return self.training_flops(len(sample), sample.num_policy_tokens)
