"""What the learner trains on: one trajectory as arrays, with the credit that ASSIGN gave its tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from verl.trajectory import BoolArray, FloatArray, IntArray, Trajectory


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One sequence. Arrays are ``[tokens]``; a value at position t speaks of token t given the tokens before it.

    Position 0 is never a policy token (a prompt comes first), so each policy token has a context.
    """

    token_ids: IntArray
    policy_mask: BoolArray
    """True where the policy chose the token; losses, KL, entropy and metrics count these and no others."""
    advantages: FloatArray
    """Credit of each token (or the weight of each token for ``weighted_nll``); 0 where the mask is False."""
    rollout_logprobs: FloatArray
    """Log-prob under the distribution that sampled; 0 where the mask is False (and everywhere for recorded traces)."""
    images: tuple[str, ...] = ()
    """Pictures that the tokens stand for, in their order (``verl.data.pictures``)."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_policy_tokens(self) -> int:
        """How many tokens the loss counts."""
        return int(self.policy_mask.sum())

    @classmethod
    def from_trajectory(cls, trajectory: Trajectory, advantages: FloatArray | float) -> TrainingSample:
        """Read a trajectory; a scalar ``advantages`` is given to every policy token."""
        if any(segment.beside for segment in trajectory.segments):
            raise ValueError(f"task {trajectory.task_id}: it is several texts, and would be read as one")
        return cls._read(trajectory, advantages)

    @classmethod
    def of_each_text(cls, trajectory: Trajectory, advantages: FloatArray | float) -> list[TrainingSample]:
        """As ``from_trajectory``, but of an episode with chats beside it: its own text first, then each of theirs."""
        texts = trajectory.texts()
        if not texts.any():
            return [cls.from_trajectory(trajectory, advantages)]
        whole = cls._read(trajectory, advantages)
        columns = (whole.token_ids, whole.policy_mask, whole.advantages, whole.rollout_logprobs)
        own, *chats = (cls(*(column[texts == text] for column in columns)) for text in range(texts.max() + 1))
        return [replace(own, images=trajectory.images), *chats]  # pictures stand in the first prompt

    @classmethod
    def _read(cls, trajectory: Trajectory, advantages: FloatArray | float) -> TrainingSample:
        if trajectory.outcome == "aborted":
            raise ValueError(f"task {trajectory.task_id}: an aborted trajectory must never be trained on")
        if any(segment.anew for segment in trajectory.segments):
            raise ValueError(f"task {trajectory.task_id}: its context began anew, and it would be read as one text")
        mask = trajectory.policy_mask()
        return cls(
            token_ids=trajectory.token_ids(),
            policy_mask=mask,
            advantages=np.where(mask, np.asarray(advantages, dtype=np.float32), np.float32(0)),
            rollout_logprobs=trajectory.rollout_logprobs(),
            images=trajectory.images,
        )
