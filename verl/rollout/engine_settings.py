"""What vLLM is told: environment variables, engine arguments, sampling arguments. Pure: plain dicts in and out.

Each setting that is not a direct copy of a config key says why it is there; most are the difference between an engine
that starts in seconds and is exact, and one that is neither (measured with vLLM 0.32 on CPU).
"""

from __future__ import annotations

from typing import Any

from verl.data.pictures import MOST, PIXELS
from verl.rollout.engine_config import EngineConfig
from verl.rollout.interfaces import Sampling, Turn

WORKER_EXTENSION = "verl.rollout.worker_extension.WorkerExtension"

_GIB = 1 << 30


def environment(config: EngineConfig, *, on_cpu: bool) -> dict[str, str]:
    """Variables that must stand in ``os.environ`` before vLLM is imported."""
    settings = {
        # The scheduler stays in this process: vLLM is imported once, not two or three times, and we step it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # Models are folders; a hub must never be asked.
        "HF_HUB_OFFLINE": "1",
    }
    if config.dtype == "float32":
        # Triton's attention, which float32 takes on GPUs, would multiply in TF32: log-probs off by 5e-3, not 1e-5.
        settings["TRITON_F32_DEFAULT"] = "ieee"
    if on_cpu:
        settings |= {
            # vLLM compiles its log-prob rank counter at the first request (5 to 20 s) even with enforce_eager.
            "TORCHDYNAMO_DISABLE": "1",
            # Threads are counted by the placement plan, not pinned: several roles share few cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads),
        }
    return settings


def engine_arguments(
    model_path: str, config: EngineConfig, *, seed: int, on_cpu: bool, sleeps: bool = False, pictures: bool = False
) -> dict[str, Any]:
    """Keyword arguments of ``vllm.EngineArgs``, without the weight-transfer config (an object of vLLM's).

    ``sleeps`` says that a GPU's memory has to be given back while the engine sleeps; ``pictures`` that the model reads
    them, by the bounds that the learner keeps.
    """
    chosen: dict[str, Any] = {
        "gpu_memory_utilization": config.gpu_memory_share,
        "enable_sleep_mode": sleeps,
    }
    if on_cpu:
        # An explicit size also skips vLLM's memory-profiling run.
        chosen = {"kv_cache_memory_bytes": int(config.kv_cache_gib * _GIB)}
    if pictures:
        chosen |= {"limit_mm_per_prompt": {"image": MOST, "video": 0}, "mm_processor_kwargs": {"size": PIXELS}}
    if config.dtype != "float32" and config.head_dtype != "model" and (config.head_dtype != "auto" or not on_cpu):
        # The head's weight stays as it is: a GPU has a product of half precision with results in float32.
        chosen["hf_overrides"] = {"head_dtype": "float32"}
    if not (on_cpu or config.enforce_eager):
        # Decoding replays graphs of vLLM's own kernels. Compiling the model as well took 17 s of a start on an H200 and
        # made no step shorter (the scheduler is what it waits for), and fused code rounds where the learner does not.
        chosen["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return chosen | {
        "model": model_path,
        "seed": seed,
        "dtype": config.dtype,
        "max_model_len": config.max_context_tokens,
        "max_num_seqs": config.max_concurrent_requests,
        "max_num_batched_tokens": config.max_tokens_per_step,
        "enable_chunked_prefill": config.split_prefill,
        "enable_prefix_caching": config.prefix_caching,
        "block_size": config.block_tokens,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": config.executor,
        # On GPUs the next step is prepared while one runs; on CPU vLLM has none of it.
        "async_scheduling": not on_cpu,
        # After temperature and truncation: the distribution that was sampled from.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": WORKER_EXTENSION,
    }


def sampling_arguments(turn: Turn, sampling: Sampling, seed: int) -> dict[str, Any]:
    """Keyword arguments of ``vllm.SamplingParams``; stop strings are looked for here (``stop_strings``)."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": turn.max_tokens,
        "detokenize": False,
        # 0 alternatives: the sampled token's log-prob alone.
        "logprobs": 0,
        # A greedy request draws nothing; without a seed vLLM takes its faster common path.
        "seed": None if sampling.temperature == 0 else seed,
    }
