"""The canary tells agreement and rounding from each kind of silent failure, and names what failed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.errors import InfrastructureError
from verl.sync.canary import EMBEDDINGS, HEAD, PATIENCE, Canary, Probe, check_loaded, rounding_nats

LEARNER: Probe = [(4, -1.0, 1.0), (5, -2.0, 2.0), (6, -0.5, 3.0), (7, -0.1, 4.0)]


def shifted(*by: float) -> Probe:
    return [(token, logprob + d, 0.0) for (token, logprob, _), d in zip(LEARNER, by, strict=True)]


def canary(*dtypes: str, learner: Probe = LEARNER, vocabulary: int = 151_936) -> Canary:
    made = Canary([[1]] * 4, dtypes=dtypes or ("float32",), vocabulary=vocabulary)
    made.expect(3, learner)
    return made


def test_the_bound_is_a_step_of_the_largest_logits() -> None:
    assert rounding_nats("bfloat16", 151_936) == 0.125
    assert rounding_nats("float16", 151_936) == 0.125 / 8
    assert rounding_nats("bfloat16", 1200) == 0.0625
    assert rounding_nats("float32", 1200) == rounding_nats("float32", 151_936) == 5e-5


def test_float32_agrees_to_a_ten_thousandth() -> None:
    canary().check("rollout_0", shifted(9e-5, 0, 0, 0))
    with pytest.raises(InfrastructureError, match="version 3 to rollout_0"):
        canary().check("rollout_0", shifted(1.2e-4, 0, 0, 0))


def test_one_token_rounded_otherwise_in_half_precision_ends_nothing() -> None:
    made = canary("bfloat16")
    for version in range(20):
        made.expect(version, LEARNER)
        made.check("rollout_0", shifted(0.284, 0.01, 0.005, 0.005))  # what a first run on a GPU saw
    for version in range(20, 40):  # more, but not on every version
        made.expect(version, LEARNER)
        made.check("rollout_0", shifted(0.4 if version % PATIENCE else 0.1, 0, 0, 0))


def test_disagreement_that_repeats_is_a_fault() -> None:
    made = canary("bfloat16")
    for version in range(PATIENCE - 1):
        made.expect(version, LEARNER)
        made.check("rollout_0", shifted(0.4, 0, 0, 0))
        made.check("rollout_0", shifted(0.4, 0, 0, 0))  # the same version again is not another one
        made.check("rollout_1", LEARNER)
    made.expect(PATIENCE, LEARNER)
    with pytest.raises(InfrastructureError, match=f"on {PATIENCE} versions in a row"):
        made.check("rollout_0", shifted(0.4, 0, 0, 0))


@pytest.mark.parametrize("others", ["float32", "float64", "float16"])
def test_the_side_that_rounds_more_sets_the_bound(others: str) -> None:
    for dtypes in (("bfloat16", others), (others, "bfloat16")):
        canary(*dtypes).check("rollout_0", shifted(0.284, 0.01, 0.005, 0.005))
    if others != "float16":
        with pytest.raises(InfrastructureError):
            canary("float32", others).check("rollout_0", shifted(0.01, 0, 0, 0))


def test_a_shift_of_all_tokens_fails_at_once() -> None:
    with pytest.raises(InfrastructureError, match="its weights are others"):
        canary("bfloat16").check("rollout_0", shifted(0.2, 0.2, 0.2, 0.2))


@pytest.mark.parametrize("place", range(4))
def test_nan_fails_wherever_it_stands(place: int) -> None:
    with pytest.raises(InfrastructureError, match="not finite"):
        canary("bfloat16").check("rollout_0", shifted(*(math.nan if i == place else 0.0 for i in range(4))))


def test_greedy_tokens_must_agree_except_at_a_tie() -> None:
    other = [(9, *LEARNER[0][1:]), *LEARNER[1:]]
    with pytest.raises(InfrastructureError, match=r"prompts \[0\] differ"):
        canary().check("rollout_0", other)
    canary(learner=[(4, -1.0, 1e-6), *LEARNER[1:]]).check("rollout_0", other)


def test_answers_to_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        canary().check("rollout_0", LEARNER[:2])


SENT = {EMBEDDINGS: ("torch.bfloat16", 100), "model.norm.weight": ("torch.bfloat16", 7)}


def test_a_tied_head_that_kept_an_old_copy_is_named() -> None:
    check_loaded(SENT, [{**SENT, HEAD: SENT[EMBEDDINGS]}], 4)
    with pytest.raises(InfrastructureError, match=r"version 4.*lm_head\.weight"):
        check_loaded(SENT, [{**SENT, HEAD: ("torch.bfloat16", 99)}], 4)


def test_a_stale_parameter_is_named_and_one_under_another_name_is_left_to_the_log_probs() -> None:
    with pytest.raises(InfrastructureError, match=r"model\.norm\.weight"):
        check_loaded(SENT, [{**SENT, "model.norm.weight": ("torch.bfloat16", 8)}], 4)
    check_loaded({**SENT, "model.layers.0.self_attn.q_proj.weight": ("torch.bfloat16", 5)}, [SENT], 4)


@given(parts=st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=4))
def test_the_shards_of_embeddings_add_up_to_the_whole(parts: list[int]) -> None:
    ranks: list[Any] = [{EMBEDDINGS: ("d", part), "model.norm.weight": ("d", 1)} for part in parts]
    total = (sum(parts) + 2**63) % 2**64 - 2**63  # as 64 bits hold it
    check_loaded({EMBEDDINGS: ("d", total), "model.norm.weight": ("d", 1)}, ranks, 1)
    with pytest.raises(InfrastructureError):
        check_loaded({EMBEDDINGS: ("d", total + 1)}, ranks, 1)
