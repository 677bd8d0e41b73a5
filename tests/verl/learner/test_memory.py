"""How many layers are computed again: the fewest that fit, and never the wrong ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.errors import UserError
from verl.learner.config import LearnerConfig, LoraConfig
from verl.learner.memory import kept_bytes, layers_to_recompute, taken_bytes
from verl.learner.phase import Phase
from verl.model_shape import ModelShape, read_shape

PHASE = Phase()
GIB = 2**30


def most(config: LearnerConfig, shape: ModelShape, ranks: int, layers: int) -> int:
    told = replace(config, gradient_checkpointing=layers)
    return sum(taken_bytes(told, shape, PHASE, ranks, on_gpu=True).values())


shapes = st.builds(
    ModelShape,
    hidden=st.sampled_from([64, 896, 4096]),
    layers=st.integers(1, 40),
    heads=st.just(8),
    kv_heads=st.sampled_from([1, 8]),
    ffn=st.sampled_from([64, 4864, 14336]),
    vocabulary=st.sampled_from([1000, 150000]),
    tied=st.booleans(),
)
configs = st.builds(
    LearnerConfig,
    max_tokens_per_microbatch=st.integers(1, 20000),
    compute_dtype=st.sampled_from(["float32", "bfloat16"]),
    offload=st.sampled_from(["none", "optimizer", "all"]),
    lora=st.sampled_from([None, LoraConfig()]),
)


@given(config=configs, shape=shapes, ranks=st.integers(1, 8), share=st.floats(0, 1.2))
def test_no_fewer_layers_fit_and_no_number_takes_less_where_none_does(
    config: LearnerConfig, shape: ModelShape, ranks: int, share: float
) -> None:
    room = int(share * most(config, shape, ranks, 0))
    chosen = layers_to_recompute(config, shape, [PHASE], ranks, room)
    taken = [most(config, shape, ranks, layers) for layers in range(shape.layers + 1)]
    if min(taken) <= room:
        assert taken[chosen] <= room
        assert all(each > room for each in taken[:chosen])
    else:
        assert taken[chosen] == min(taken)


def test_one_card_that_holds_everything_recomputes_nothing_and_a_small_one_something() -> None:
    shape = read_shape("Qwen/Qwen2.5-1.5B")
    config = LearnerConfig(compute_dtype="bfloat16")
    assert [round(most(config, shape, 1, layers) / GIB, 1) for layers in (0, 14, 27, 28)] == [52.5, 40.7, 29.7, 29.8]
    rooms = (70, 53, 52, 40, 30, 20)
    assert [layers_to_recompute(config, shape, [PHASE], 1, room * GIB) for room in rooms] == [0, 0, 1, 15, 27, 27]


def test_the_first_layers_make_again_what_they_need_where_the_others_kept_theirs() -> None:
    shape = ModelShape(8, 4, 2, 2, 16, 10, True)
    config = LearnerConfig(max_tokens_per_microbatch=1)
    whole = 4 * (4 * 8 + 5 * 8 + 2 * 16)
    for layers, at_most in ((0, 4 * whole), (1, 32 + 3 * whole), (3, 3 * 32 + whole), (4, 4 * 32 + whole)):
        kept, on_the_way = kept_bytes(replace(config, gradient_checkpointing=layers), shape)
        assert kept == layers * 32 + (4 - layers) * whole
        assert on_the_way == at_most


def test_a_number_counts_layers_and_a_word_all_or_none() -> None:
    told = {False: 0, True: 28}
    for value, layers in told.items():
        assert LearnerConfig(gradient_checkpointing=value).recomputed(28) == layers
    assert [LearnerConfig(gradient_checkpointing=n).recomputed(28) for n in (0, 1, 28, 40)] == [0, 1, 28, 28]
    with pytest.raises(UserError, match="gradient_checkpointing=-1: write 0 or more"):
        LearnerConfig(gradient_checkpointing=-1)
    with pytest.raises(ValueError, match="has to become a number"):
        LearnerConfig().recomputed(28)
