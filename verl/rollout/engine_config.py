"""The settings of one generation engine. No torch, no vLLM: a wrong value is reported before either is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verl.errors import UserError, above, at_least

# vLLM's CPU attention kernel works on blocks of a multiple of this many tokens.
_CPU_BLOCK_MULTIPLE = 32


@dataclass(frozen=True)
class EngineConfig:
    """One vLLM engine: precision, limits, memory, processes."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of weights, activations and KV cache. float32 on CPU, where log-probs then equal the trainer's to 1e-5;
    bfloat16 on GPUs."""
    head_dtype: Literal["auto", "float32", "model"] = "auto"
    """Precision of the LM head's results where ``dtype`` is less: see ``learner.head_dtype``, which has to be the same,
    or log-probs of rollout and learner lie further apart."""
    max_context_tokens: int = 1024
    """Longest prompt plus generation of a request, in tokens; at most what the model's positions allow."""
    max_concurrent_requests: int = 256
    """Requests in one step's batch; more wait in the engine's queue, in order of arrival."""
    max_tokens_per_step: int = 8192
    """Token budget of one engine step: at least ``max_context_tokens`` unless ``split_prefill``."""
    split_prefill: bool = False
    """Whether a long prompt may be read in several steps. Off on CPU: a request's own seed is then exact (vLLM's CPU
    sampler cannot rewind a generator after a partial prefill). On for long contexts on GPUs."""
    kv_cache_gib: float = 1.0
    """Memory for keys and values on CPU, in GiB, for each tensor-parallel rank. Not used on GPUs."""
    gpu_memory_share: float = 0.8
    """Share of a GPU's memory for weights and KV cache, in (0, 1]. Not used on CPU."""
    tensor_parallel_size: int = 1
    """Ranks that share one copy of the model. More than 1 needs ``executor: mp``."""
    executor: Literal["uni", "mp"] = "uni"
    """``uni``: the model runs in this process (fastest start). ``mp``: one worker process a rank."""
    threads: int = 1
    """OpenMP threads of each rank on CPU. 1 leaves the second core of a small machine to the learner and retriever."""
    block_tokens: int = 32
    """Tokens of a KV block, the unit of prefix caching: small enough that short shared prompts hit."""
    prefix_caching: bool = True
    """Reuse keys and values of a prefix seen before (turns of an episode, samples of a task)."""
    after_push: Literal["refresh", "keep"] = "refresh"
    """What new weights mean for a request in flight. ``refresh`` reads all its tokens again, so that the next ones are
    exactly the new policy's. ``keep`` goes on with the keys and values that older weights made, at no cost, for bounded
    staleness with a correction; later requests never find those. With ``placement=shared`` it is always ``refresh``."""
    enforce_eager: bool = True
    """Launch every kernel anew. False on GPUs, where decoding then replays recorded graphs: an H200 took 7 ms a step of
    256 requests, and 24 without. A CPU has none."""
    weight_transfer: Literal["shm", "ipc", "nccl"] = "shm"
    """How new weights arrive: ``shm`` is a memory-mapped file, on CPU and GPU. ``ipc`` (with ``placement=shared``; seen
    on one card) and ``nccl`` (with ``split``; never on cards) go from GPU to GPU, and by file if that fails twice."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_context_tokens", "max_concurrent_requests", "tensor_parallel_size", "threads")
        at_least(self, 1, "block_tokens")
        above(self, 0, "gpu_memory_share", most=1)
        above(self, 0, "kv_cache_gib")
        if self.block_tokens % _CPU_BLOCK_MULTIPLE:
            raise UserError(f"block_tokens is {self.block_tokens}: write a multiple of {_CPU_BLOCK_MULTIPLE}")
        if self.tensor_parallel_size > 1 and self.executor == "uni":
            raise UserError(f"tensor_parallel_size is {self.tensor_parallel_size} with executor uni: write executor=mp")
        if not self.split_prefill and self.max_tokens_per_step < self.max_context_tokens:
            raise UserError(
                f"max_tokens_per_step ({self.max_tokens_per_step}) is below max_context_tokens "
                f"({self.max_context_tokens}): a whole prompt must fit in a step; raise it, or set split_prefill=true"
            )
        if self.max_tokens_per_step < self.max_concurrent_requests:
            raise UserError(
                f"max_tokens_per_step ({self.max_tokens_per_step}) is below max_concurrent_requests "
                f"({self.max_concurrent_requests}): each running request takes a token a step; raise it"
            )
