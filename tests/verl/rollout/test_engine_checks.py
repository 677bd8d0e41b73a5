"""Wrong models and limits are one line each, found before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl.errors import UserError
from verl.rollout.engine_checks import check_architecture, check_model, kv_bytes_per_token
from verl.rollout.engine_config import EngineConfig
from verl.rollout.engine_settings import engine_arguments, environment, sampling_arguments
from verl.rollout.interfaces import Sampling, Turn

DESCRIPTION = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(DESCRIPTION))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_a_sound_model_passes(folder: Path) -> None:
    check_model(folder, EngineConfig(), on_cpu=True)
    check_architecture(folder, frozenset({"Qwen2ForCausalLM"}))


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "no weights")],
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=message):
        check_model(folder, EngineConfig(), on_cpu=True)


def test_a_damaged_description_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 1')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        check_model(folder, EngineConfig(), on_cpu=True)


def test_a_model_that_reads_pictures_needs_torchvision_and_is_measured_by_how_it_reads_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"model_type": "qwen2_5_vl", "text_config": DESCRIPTION}
    (folder / "config.json").write_text(json.dumps(described))
    monkeypatch.setattr("verl.rollout.engine_checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="reads pictures, and vLLM needs torchvision for that: install it"):
        check_model(folder, EngineConfig(), on_cpu=True)
    monkeypatch.setattr("verl.rollout.engine_checks.find_spec", lambda name: name)
    check_model(folder, EngineConfig(), on_cpu=True)
    with pytest.raises(UserError, match="max_position_embeddings=2048"):
        check_model(folder, EngineConfig(max_context_tokens=4096), on_cpu=True)


def test_an_architecture_that_is_not_served_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="Qwen2ForCausalLM, which this vLLM does not serve"):
        check_architecture(folder, frozenset({"LlamaForCausalLM"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_context_tokens": 4096}, r"max_position_embeddings=2048\): write 2048 or less"),
        ({"max_context_tokens": 2048, "kv_cache_gib": 0.001}, "kv_cache_gib=0.001 cannot hold one request of 2048"),
        ({"tensor_parallel_size": 3, "executor": "mp"}, "does not divide the 4 attention heads"),
    ],
)
def test_limits_that_the_model_cannot_meet(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model(folder, replace(EngineConfig(), **changes), on_cpu=True)


def test_a_head_size_that_the_cpu_kernel_lacks_is_refused_on_cpu_alone(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(DESCRIPTION | {"hidden_size": 64}))
    with pytest.raises(UserError, match="heads of size 16"):
        check_model(folder, EngineConfig(), on_cpu=True)
    check_model(folder, EngineConfig(), on_cpu=False)


def test_kv_bytes_are_counted_per_rank() -> None:
    # keys and values x 3 layers x 2 heads x 32 numbers x 4 bytes
    assert kv_bytes_per_token(DESCRIPTION, EngineConfig()) == 2 * 3 * 2 * 32 * 4
    two = EngineConfig(tensor_parallel_size=2, executor="mp", dtype="bfloat16")
    assert kv_bytes_per_token(DESCRIPTION, two) == 2 * 3 * 1 * 32 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 0}, "threads=0"),
        ({"gpu_memory_share": 1.5}, "gpu_memory_share"),
        ({"kv_cache_gib": 0.0}, "kv_cache_gib"),
        ({"block_tokens": 16}, "multiple of 32"),
        ({"tensor_parallel_size": 2}, "executor=mp"),
        ({"max_tokens_per_step": 512}, "split_prefill=true"),
        ({"max_tokens_per_step": 512, "split_prefill": True, "max_concurrent_requests": 1024}, "a token a step"),
    ],
)
def test_a_config_that_cannot_work_names_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineConfig(**changes)


def test_no_prefill_is_split_by_default() -> None:
    arguments = engine_arguments("m", EngineConfig(max_context_tokens=512), seed=7, on_cpu=True)
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["max_num_batched_tokens"] >= arguments["max_model_len"] == 512
    assert arguments["kv_cache_memory_bytes"] == 1 << 30


def test_a_gpu_is_asked_for_a_share_of_its_memory() -> None:
    arguments = engine_arguments("m", EngineConfig(gpu_memory_share=0.5), seed=7, on_cpu=False, sleeps=True)
    assert "kv_cache_memory_bytes" not in arguments
    assert (arguments["gpu_memory_utilization"], arguments["enable_sleep_mode"]) == (0.5, True)


def test_float32_is_exact_on_gpus_too() -> None:
    assert environment(EngineConfig(), on_cpu=False)["TRITON_F32_DEFAULT"] == "ieee"
    assert "TRITON_F32_DEFAULT" not in environment(EngineConfig(dtype="bfloat16"), on_cpu=False)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head", ["auto", "float32", "model"])
def test_the_head_gives_float32_where_asked_for_and_by_default_on_gpus(head: Any, dtype: Any, on_cpu: bool) -> None:
    arguments = engine_arguments("m", EngineConfig(dtype=dtype, head_dtype=head), seed=0, on_cpu=on_cpu)
    asked = dtype == "bfloat16" and (head == "float32" or (head == "auto" and not on_cpu))
    assert arguments.get("hf_overrides") == ({"head_dtype": "float32"} if asked else None)


def test_the_environment_of_a_gpu_is_left_to_its_driver() -> None:
    assert environment(EngineConfig(threads=2), on_cpu=True)["OMP_NUM_THREADS"] == "2"
    assert environment(EngineConfig(dtype="bfloat16"), on_cpu=False).keys() == {
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_NO_USAGE_STATS",
        "HF_HUB_OFFLINE",
    }


def test_a_request_carries_its_seed_and_no_text_is_made_of_it() -> None:
    arguments = sampling_arguments(Turn(9, ("</a>",)), Sampling(temperature=0.5), 11)
    assert (arguments["seed"], arguments["max_tokens"]) == (11, 9)
    assert not arguments["detokenize"]
    assert "stop" not in arguments
    assert sampling_arguments(Turn(9), Sampling(temperature=0.0), 11)["seed"] is None


@pytest.mark.parametrize("on_cpu", [True, False])
def test_steps_are_scheduled_ahead_on_gpus_alone(on_cpu: bool) -> None:
    assert engine_arguments("m", EngineConfig(), seed=0, on_cpu=on_cpu)["async_scheduling"] == (not on_cpu)


def test_configuration_and_checks_import_nothing_heavy() -> None:
    code = (
        "import sys, verl.rollout.engine_config, verl.rollout.engine_checks, verl.rollout.engine_settings, "
        "verl.rollout.engine, verl.sync.manager, verl.sync.canary; "
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(("eager", "on_cpu"), [(True, False), (False, True), (True, True), (False, False)])
def test_graphs_are_recorded_of_the_engines_own_kernels_and_nothing_is_compiled(eager: bool, on_cpu: bool) -> None:
    """What Inductor fuses rounds elsewhere than the learner does."""
    told = engine_arguments("m", EngineConfig(enforce_eager=eager), seed=0, on_cpu=on_cpu).get("compilation_config")
    assert told == (None if eager or on_cpu else {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"})
