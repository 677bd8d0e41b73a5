"""What every vLLM worker process imports before it loads the model (vLLM's ``worker_extension_cls``).

On import, once a process:
- the memory-mapped weight carrier is registered with vLLM under the name ``shm``;
- on CPU, vLLM's linear layers are kept plain. It would pack each weight for oneDNN and drop the raw one: an update then
  cannot be loaded in place, and a tied LM head silently keeps its packed copy of the OLD embedding (greedy tokens still
  look sane; log-probs are off by 1). ``torch.nn.functional.linear`` on the raw parameter costs little and is exact.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils as linear_layers
from vllm.platforms import current_platform

from verl.sync.receiver import BACKEND, ShmWeightTransferEngine

_pack = linear_layers.dispatch_cpu_unquantized_gemm


def _keep_plain(layer: Any, remove_weight: bool) -> None:
    """Stand in for vLLM's function of that place: compute with the parameter itself, whatever it holds by then."""
    if layer.weight.ndim == 2:
        layer.cpu_linear = torch.nn.functional.linear
    else:
        _pack(layer, remove_weight)


if current_platform.is_cpu():
    linear_layers.dispatch_cpu_unquantized_gemm = _keep_plain

WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)


class WorkerExtension:
    """Mixed into vLLM's worker, for what only the worker knows."""

    def shared_memory_name(self) -> str:
        """How the names of this engine's shared-memory segments begin; empty if it has none."""
        return os.environ.get("VLLM_DIST_IDENT", "")
