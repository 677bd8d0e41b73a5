"""The engine adapter on a real vLLM: tokens, log-probs, seeds, stops, weights and their versions."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verl.algorithms.lora import DOWN, UP
from verl.errors import UserError
from verl.rollout.engine import EngineConfig, GenerateRequest, VllmEngine
from verl.rollout.interfaces import Generation, Sampling, Turn
from verl.sync import WeightUpdate
from verl.sync.file import publish
from verl.sync.relay import release

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(max_context_tokens=256, max_tokens_per_step=512, kv_cache_gib=0.125)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(tiny_model, CONFIG, seed=0)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> list[Any]:
    """Two versions of the weights: the folder's and another one, far from it."""
    from transformers import Qwen2ForCausalLM

    old = Qwen2ForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    new = copy.deepcopy(old)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return [old, new]


@pytest.fixture
def updates(models: list[Any], tmp_path: Path) -> Iterator[Callable[[int, int], WeightUpdate]]:
    made = []

    def make(which: int, version: int) -> WeightUpdate:
        made.append(publish(models[which].named_parameters(), version, tmp_path))
        return made[-1]

    yield make
    for update in made:
        release(update)


@torch.no_grad()
def logprobs_by(model: Any, token_ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """Log-prob of each token given those before it, ``[tokens]``; 0 for the first."""
    logits = model(torch.tensor([list(token_ids)])).logits[0] / temperature
    picked = logits[:-1].log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
    return np.concatenate([[0.0], picked.numpy()])


def assert_close(ours: Sequence[float], theirs: np.ndarray) -> None:
    diffs = np.abs(np.asarray(ours) - theirs)
    assert diffs.max() <= 1e-4
    assert diffs.mean() <= 1e-5


async def test_images_are_refused_by_name(engine: VllmEngine) -> None:
    with pytest.raises(UserError, match=r"a task shows 2 images \(a\.png\) and the engine reads text alone"):
        await engine.generate([1, 2], Turn(4, images=("a.png", "b.png")), GREEDY, seed=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_of_every_turn_are_the_models(engine: VllmEngine, models: list[Any], temperature: float) -> None:
    sampling = Sampling(temperature=temperature)

    async def episode(seed: int) -> None:
        ids = [3, 10 + seed, 200, 7]
        for turn in range(3):
            generation = await engine.generate(ids, Turn(40), sampling, seed * 10 + turn)
            whole = [*ids, *generation.token_ids]
            assert_close(generation.logprobs, logprobs_by(models[0], whole, temperature)[len(ids) :])
            assert set(generation.versions) == {0}
            ids = [*whole, 50, 51, 52]  # an observation

    await asyncio.gather(*(episode(seed) for seed in range(8)))
    assert engine.stats().cached_prompt_tokens > 0


async def test_greedy_tokens_are_the_models_and_their_logprobs_those_at_temperature_one(
    engine: VllmEngine, models: list[Any]
) -> None:
    greedy = [GenerateRequest([40 + i, 41], Turn(20), GREEDY, i) for i in range(5)]
    crowd = [GenerateRequest([9, i], Turn(20), Sampling(temperature=0.5), i) for i in range(20)]
    generations = (await asyncio.gather(*engine.generate_many([*crowd, *greedy])))[len(crowd) :]
    for request, generation in zip(greedy, generations, strict=True):
        whole = [*request.token_ids, *generation.token_ids]
        assert_close(generation.logprobs, logprobs_by(models[0], whole)[2:])
        with torch.no_grad():
            likeliest = models[0](torch.tensor([whole])).logits[0].argmax(-1)
        assert list(generation.token_ids) == likeliest[1:-1].tolist()


async def test_the_seed_alone_decides_the_tokens(engine: VllmEngine) -> None:
    prompt, turn = [8, 30, 41], Turn(30)

    async def draw(seed: int) -> Sequence[int]:
        return (await engine.generate(prompt, turn, Sampling(), seed)).token_ids

    alone = [await draw(seed) for seed in range(4)]
    crowd = [GenerateRequest([9, i], Turn(5 + i), Sampling(temperature=0.5), 100 + i) for i in range(60)]
    others = engine.generate_many(crowd)
    together = await asyncio.gather(*(draw(seed) for seed in range(4)))
    await asyncio.gather(*others)
    assert together == alone
    assert len({tuple(ids) for ids in alone}) == 4


async def test_the_same_list_on_an_idle_engine_gives_the_same_result(engine: VllmEngine) -> None:
    requests = [GenerateRequest([4, i], Turn(25), Sampling(), i) for i in range(50)]
    first = await asyncio.gather(*engine.generate_many(requests))
    second = await asyncio.gather(*engine.generate_many(requests))
    assert [g.token_ids for g in first] == [g.token_ids for g in second]


def mid_token_stop(tokenizer: Any, generation: Generation) -> tuple[int, str] | None:
    """A stop string first completed inside a token that goes on after it, and that token's index."""
    for index, token in enumerate(generation.token_ids):
        text = tokenizer.decode([token])
        before = tokenizer.decode(generation.token_ids[:index])
        if len(text) > 3 and text.isascii() and text[:2] not in before + text[:1]:
            return index, text[:2]
    return None


async def test_a_stop_string_ends_after_its_last_token_whole(engine: VllmEngine, tokenizer: Any) -> None:
    free = await asyncio.gather(
        *engine.generate_many([GenerateRequest([12, 13], Turn(60), Sampling(), seed) for seed in range(40)])
    )
    cases = [(seed, g, stop) for seed, g in enumerate(free) if (stop := mid_token_stop(tokenizer, g)) is not None]
    assert len(cases) >= 5
    stopped = await asyncio.gather(
        *engine.generate_many(
            [
                GenerateRequest([12, 13], Turn(60, (stop, "never this")), Sampling(), seed)
                for seed, _, (_, stop) in cases
            ]
        )
    )
    for (_, whole, (last, string)), cut in zip(cases, stopped, strict=True):
        assert cut.token_ids == whole.token_ids[: last + 1]
        assert len(cut.logprobs) == len(cut.versions) == last + 1
        assert cut.text == tokenizer.decode(cut.token_ids)
        assert not cut.text.endswith(string)
        assert (cut.finish_reason, cut.stop) == ("stop", string)


async def test_end_of_turn_is_sampled_and_kept_and_length_is_told(engine: VllmEngine, tokenizer: Any) -> None:
    requests = [GenerateRequest([20, 21], Turn(60), Sampling(), seed) for seed in range(100)]
    generations = await asyncio.gather(*engine.generate_many(requests))
    ended = [g for g in generations if g.finish_reason == "end_of_turn"]
    cut = [g for g in generations if g.finish_reason == "length"]
    assert ended
    assert cut
    assert len(ended) + len(cut) == len(generations)
    assert all(list(g.token_ids).index(tokenizer.eos_token_id) == len(g.token_ids) - 1 for g in ended)
    assert all(len(g.token_ids) == 60 and tokenizer.eos_token_id not in g.token_ids for g in cut)
    assert all(g.text == tokenizer.decode(g.token_ids) for g in generations)


async def test_what_cannot_fit_is_refused_with_the_key_to_change(engine: VllmEngine) -> None:
    with pytest.raises(UserError, match="max_context_tokens=256"):
        await engine.generate([1] * 200, Turn(57), Sampling(), 0)
    with pytest.raises(UserError, match="0 tokens"):
        await engine.generate([], Turn(5), Sampling(), 0)


async def test_requests_given_up_leave_the_engine_and_it_lives(engine: VllmEngine) -> None:
    await engine.pause()
    futures = engine.generate_many([GenerateRequest([7, i], Turn(200), Sampling(), i) for i in range(5)])
    for future in futures:
        future.cancel()
    await engine.resume()
    await asyncio.gather(*futures, return_exceptions=True)
    assert len((await engine.generate([7], Turn(3), GREEDY, 0)).token_ids) == 3
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


async def test_requests_sleep_and_wake_with_the_engine_and_go_on_with_the_next_weights(
    engine: VllmEngine, updates: Callable[[int, int], WeightUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = slept_at(engine, monkeypatch)
    requests = [GenerateRequest([70 + i, 71], Turn(150), GREEDY, i) for i in range(8)]
    undisturbed = await asyncio.gather(*engine.generate_many(requests))
    futures = engine.generate_many(requests)
    for _ in range(20):
        await engine._thread.call(lambda: None)
    await engine.sleep()
    busy = engine.stats().busy_s
    late = engine.generate_many(requests[:1])
    await engine.wake()
    for _ in range(20):
        await engine._thread.call(lambda: None)
    assert engine.stats().busy_s == busy  # it has no weights yet
    await engine.update_weights(updates(0, 0), 0)
    generations = await asyncio.gather(*futures, *late)
    assert [g.token_ids for g in generations] == [g.token_ids for g in (*undisturbed, undisturbed[0])]
    assert levels == [2]


def slept_at(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The levels of vLLM's sleep from now on: at 1 weights move to host memory, at 2 they are given up."""
    levels: list[int] = []
    inner = engine._vllm._engine
    sleep = inner.sleep

    def noted(level: int, mode: Any) -> None:
        levels.append(level)
        sleep(level=level, mode=mode)

    monkeypatch.setattr(inner, "sleep", noted)
    return levels


async def test_an_update_reaches_every_weight_and_empties_the_prefix_cache(
    engine: VllmEngine, models: list[Any], updates: Callable[[int, int], WeightUpdate]
) -> None:
    ids = [3, 4, 5, 6] * 30
    for which, version in ((1, 1), (0, 2)):
        await engine.generate(ids, Turn(1), GREEDY, 0)
        cached = engine.stats().cached_prompt_tokens
        await engine.update_weights(updates(which, version), version)
        generation = await engine.generate(ids, Turn(40), Sampling(), 1)
        assert engine.stats().cached_prompt_tokens == cached
        assert set(generation.versions) == {version}
        whole = [*ids, *generation.token_ids]
        assert_close(generation.logprobs, logprobs_by(models[which], whole)[len(ids) :])


async def test_requests_in_flight_go_on_across_an_update(
    engine: VllmEngine, models: list[Any], updates: Callable[[int, int], WeightUpdate]
) -> None:
    requests = [GenerateRequest([60 + i, 61], Turn(200), Sampling(), i) for i in range(20)]
    undisturbed = await asyncio.gather(*engine.generate_many(requests))
    futures = engine.generate_many(requests)
    for _ in range(30):  # each round trip lets at least one step pass
        await engine._thread.call(lambda: None)
    await engine.pause()
    update = updates(1, 3)
    await engine.update_weights(update, 3)
    await engine.resume()
    generations = await asyncio.gather(*futures)
    mixed = 0
    for request, generation, old in zip(requests, generations, undisturbed, strict=True):
        versions = np.asarray(generation.versions)
        split = int((versions < 3).sum())
        assert (np.diff(versions) >= 0).all()
        assert generation.token_ids[:split] == old.token_ids[:split]
        whole = [*request.token_ids, *generation.token_ids]
        by_old, by_new = (logprobs_by(model, whole)[len(request.token_ids) :] for model in models)
        assert_close(generation.logprobs, np.concatenate([by_old[:split], by_new[split:]]))
        mixed += 0 < split < len(versions)
    assert mixed >= 5
    await engine.update_weights(updates(0, 4), 4)


async def test_adapters_added_to_a_base_are_the_merged_weights(
    engine: VllmEngine,
    models: list[Any],
    updates: Callable[[int, int], WeightUpdate],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = slept_at(engine, monkeypatch)
    base, merged = models[0], copy.deepcopy(models[0])
    adapters: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            if "_proj" in name and weight.ndim == 2:
                up, down = (torch.randn(n, generator=generator) * 0.1 for n in ((len(weight), 4), (4, weight.shape[1])))
                adapters |= {name + UP: up, name + DOWN: down}
                weight.add_(2.0 * (up @ down))
    held = publish(base.named_parameters(), 7, tmp_path, "base")
    ids = [5, 6, 7, 8]
    for version in (7, 8):  # the base with it, then the adapters alone
        await engine.sleep()
        await engine.wake()
        update = publish(adapters.items(), version, tmp_path, "adapters")
        await engine.update_weights(replace(update, base=held, scale=2.0), version)
        generation = await engine.generate(ids, Turn(20), Sampling(), 0)
        assert_close(generation.logprobs, logprobs_by(merged, [*ids, *generation.token_ids])[len(ids) :])
        adapters = {name: matrix if name.endswith(DOWN) else -matrix for name, matrix in adapters.items()}
        with torch.no_grad():
            for name, weight in merged.named_parameters():
                if name + UP in adapters:
                    weight.add_(4.0 * (adapters[name + UP] @ adapters[name + DOWN]))
    assert levels == [2, 1]  # the base is not sent again
    await engine.update_weights(updates(0, 9), 9)


async def test_a_step_in_flight_when_weights_change_keeps_the_version_that_sampled_it(
    tiny_model: Path, models: list[Any], updates: Callable[[int, int], WeightUpdate]
) -> None:
    engine = VllmEngine(tiny_model, CONFIG, seed=0)
    core = engine._vllm._client.engine_core
    # As with asynchronous scheduling, which vLLM has on GPUs alone: a step is begun before the last one is looked at.
    core.batch_queue, core.batch_queue_size, core.step_fn = deque(maxlen=2), 2, core.step_with_batch_queue
    requests = [GenerateRequest([60 + i, 61], Turn(100), Sampling(), i) for i in range(4)]
    futures = engine.generate_many(requests)
    changed = False
    for version in range(1, 8):
        for _ in range(5):
            await engine._thread.call(lambda: None)
        await engine.pause()
        changed |= bool(core.batch_queue)
        await engine.update_weights(updates(version % 2, version), version)
    assert changed
    for request, generation in zip(requests, await asyncio.gather(*futures), strict=True):
        whole = [*request.token_ids, *generation.token_ids]
        by = [logprobs_by(model, whole)[2:] for model in models]
        expected = np.array([by[version % 2][i] for i, version in enumerate(generation.versions)])
        assert_close(generation.logprobs, expected)
        assert len(set(generation.versions)) > 2
    await engine.close()


def in_flight(engine: VllmEngine) -> dict[str, int]:
    """Tokens whose keys and values are there, by request."""
    requests = engine._vllm._engine.engine_core.engine_core.scheduler.requests
    return {key: request.num_computed_tokens for key, request in requests.items()}


@pytest.mark.parametrize("after_push", ["refresh", "keep"])
async def test_what_a_push_means_for_requests_in_flight_is_a_key_and_later_ones_are_exact(
    tiny_model: Path, models: list[Any], updates: Callable[[int, int], WeightUpdate], after_push: Any
) -> None:
    engine = VllmEngine(tiny_model, replace(CONFIG, after_push=after_push), seed=0)
    ids = [3, 4, 5, 6] * 30
    futures = engine.generate_many([GenerateRequest([*ids, i], Turn(100), Sampling(), i) for i in range(4)])
    while min(in_flight(engine).values(), default=0) < len(ids) + 5:
        await engine._thread.call(lambda: None)
    await engine.pause()
    read = in_flight(engine)
    update = updates(1, 1)
    await engine._thread.call(lambda: engine._vllm.load_update(update, 1))
    assert in_flight(engine) == (read if after_push == "keep" else dict.fromkeys(read, 0))
    await engine.resume()
    exact = await engine.generate(ids, Turn(20), Sampling(), 1)
    assert_close(exact.logprobs, logprobs_by(models[1], [*ids, *exact.token_ids])[len(ids) :])
    for i, generation in enumerate(await asyncio.gather(*futures)):
        assert set(generation.versions) == {0, 1}
        of_new = generation.versions.index(1)
        whole = [*ids, i, *generation.token_ids]
        by_new = logprobs_by(models[1], whole)[len(ids) + 1 + of_new :]
        assert np.allclose(generation.logprobs[of_new:], by_new, atol=1e-4) == (after_push == "refresh")
    await engine.close()
