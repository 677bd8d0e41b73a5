"""The modules that are trained: a Hugging Face decoder that scores the policy tokens of packed micro-batches.

``PolicyModel`` says how likely they were; ``ValueModel`` (the critic) what the episode is worth before each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from verl.data.batch import PackedBatch
from verl.data.pictures import Pictures
from verl.errors import UserError
from verl.learner.attention import AttentionLayout
from verl.learner.logprobs import policy_logprobs, top_logprobs
from verl.learner.parts import decoder_of
from verl.learner.ulysses import SequenceSplit


class PackedModel(nn.Module):
    """A causal LM of which only the decoder and the weight of the head are used."""

    def __init__(
        self, lm: PreTrainedModel, split: SequenceSplit | None = None, pictures: Pictures | None = None
    ) -> None:
        super().__init__()
        self.lm = lm
        self.split = split
        self.pictures = pictures
        self.weights: dict[str, DTensor] = {}
        """Sharded parameters by Hugging Face name, in a fixed order; a tied LM head is not repeated. Kept here because
        between a forward and a backward pass the module's own parameters are whole ones, made for that pass."""

    def predicting_states(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """Hidden states that predict policy tokens, ``[own, width]``, and which tokens: None is all ``n`` of them."""
        split = self.split
        ids, positions = batch.input_ids, batch.position_ids
        own, places = None, batch.policy_positions - 1
        if split is not None:
            ids, positions = split.slice_of(ids), split.slice_of(positions)
            own, places = split.own_policy_tokens(batch)
        read = {"input_ids": ids[None], "position_ids": positions[None]}
        output = decoder_of(self.lm)(
            **(self._with_pictures(batch) if batch.images else read),
            layout=AttentionLayout.of(batch, split),
            use_cache=False,
        )
        return output.last_hidden_state.squeeze(0).index_select(0, places), own

    def _with_pictures(self, batch: PackedBatch) -> dict[str, Tensor]:
        """What the decoder reads where pictures are shown: embeddings ``[1, tokens, width]``, and their places in time,
        height and width ``[3, 1, tokens]``. What sees is not trained."""
        if self.pictures is None:
            raise UserError(f"{len(batch.images)} samples show pictures, and the model reads text alone")
        ids, sees = batch.input_ids, self.lm.base_model
        shown = (ids == self.pictures.pad) & ~batch.policy_mask
        pixels, grid = self.pictures.pixels([name for names in batch.images for name in names])
        with torch.no_grad():
            features = torch.cat(sees.get_image_features(pixels.to(ids.device), grid.to(ids.device)).pooler_output)
        if int(shown.sum()) != len(features):
            raise UserError(f"{int(shown.sum())} tokens stand for pictures of {len(features)}: a picture was replaced")
        embeddings = self.lm.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter(shown[:, None], features.to(embeddings.dtype))
        parts = zip(ids.split(batch.lengths), shown.split(batch.lengths), strict=True)
        grids = grid.split([len(names) for names in batch.images])
        places = [
            sees.get_rope_index(part[None].cpu(), mm_token_type_ids=pads[None].int().cpu(), image_grid_thw=each)[0]
            for (part, pads), each in zip(parts, grids, strict=True)
        ]
        return {"inputs_embeds": embeddings[None], "position_ids": torch.cat(places, dim=-1).to(ids.device)}

    def whole(self, scores: Tensor, own: Tensor | None, batch: PackedBatch) -> Tensor:
        """The scores ``[n]`` of all policy tokens from those made here."""
        if own is None or self.split is None:
            return scores
        return self.split.gather_scores(scores, own, len(batch.policy_positions))


class PolicyModel(PackedModel):
    """Gives log-probs and entropies of policy tokens instead of logits."""

    def __init__(
        self,
        lm: PreTrainedModel,
        max_logits_mib: int,
        split: SequenceSplit | None = None,
        pictures: Pictures | None = None,
        *,
        full_head: bool = True,
    ) -> None:
        super().__init__(lm, split, pictures)
        self.max_logits_mib = max_logits_mib
        self.full_head = full_head

    def forward(
        self, batch: PackedBatch, temperature: float, entropy_gradient: bool, top: int = 0
    ) -> tuple[Tensor, Tensor]:
        """``(logprobs, entropy)``, each ``[n]`` over the policy tokens of ``batch``, in at least float32.

        With ``top``: the log-probs and ids ``[n, top]`` of the likeliest tokens there instead, for a few positions.
        """
        states, own = self.predicting_states(batch)
        head = self.lm.get_output_embeddings().weight
        if top:
            values, ids = top_logprobs(states, head, top, temperature=temperature, full=self.full_head)
            columns = [[self.whole(x[:, i], own, batch) for i in range(top)] for x in (values, ids)]
            return torch.stack(columns[0], dim=1), torch.stack(columns[1], dim=1)
        logprobs, entropy = policy_logprobs(
            states,
            head,
            batch.targets if own is None else batch.targets[own],
            temperature=temperature,
            entropy_gradient=entropy_gradient,
            max_logits_mib=self.max_logits_mib,
            full=self.full_head,
        )
        return self.whole(logprobs, own, batch), self.whole(entropy, own, batch)


class ValueModel(PackedModel):
    """Gives the value before each policy token: the LM head is replaced by one row."""

    def forward(self, batch: PackedBatch) -> Tensor:
        """Values, ``[n]`` over the policy tokens of ``batch``, in at least float32."""
        states, own = self.predicting_states(batch)
        exact = torch.promote_types(states.dtype, torch.float32)
        values = states.to(exact) @ self.lm.get_output_embeddings().weight[0].to(exact)
        return self.whole(values, own, batch)


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes are free of gradients; afterwards the whole weights they made are dropped.

    Without that, weights loaded or stepped later would not be seen: FSDP drops whole weights in the backward pass only.
    """
    try:
        with torch.no_grad():
            yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
