"""What every vLLM worker process imports before it loads the model (vLLM's ``worker_extension_cls``).

On import, once a process:
- receivers of GPU transfers that check what came are registered with vLLM as ``watched_ipc`` and ``watched_nccl``;
- on CPU, vLLM's linear layers keep their weights. It would pack each for oneDNN and drop the raw one: an update then
  cannot be loaded in place, and a tied LM head silently keeps its packed copy of the OLD embedding (greedy tokens still
  look sane; log-probs are off by 1). Here the packed copy stands beside the weight and is made anew after each update;
  in float32 it is two to three times as fast as ``torch.nn.functional.linear`` where MKL has no kernels for the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from vllm import _custom_ops as _ops
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils as linear_layers
from vllm.platforms import current_platform

from verl.sync import Sums, WeightUpdate
from verl.sync.canary import Fingerprint
from verl.sync.file import HeldBase, load_file

_PRIMITIVES = 32
"""Batch sizes for which a layer keeps its kernel, as in vLLM."""
_pack = linear_layers.dispatch_cpu_unquantized_gemm


def _keep_weight(layer: Any, remove_weight: bool) -> None:
    """Stand in for vLLM's function of that place: the weight stays, whatever is computed with."""
    if layer.weight.ndim != 2:
        _pack(layer, remove_weight)
    elif layer.weight.dtype == torch.float32 and _ops._supports_onednn and not layer.weight.is_meta:
        handler = _ops.create_onednn_mm(layer.weight.t(), _PRIMITIVES)
        layer.cpu_linear = lambda x, weight, bias: _ops.onednn_mm(handler, x, bias)
    else:
        layer.cpu_linear = torch.nn.functional.linear


def _pack_anew(model: torch.nn.Module) -> None:
    """Make the packed copies of weights that may have changed."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear"):
            _keep_weight(layer, remove_weight=False)


if current_platform.is_cpu():
    linear_layers.dispatch_cpu_unquantized_gemm = _keep_weight

for _name in ("ipc", "nccl"):  # by path: their modules are imported where one is used
    WeightTransferEngineFactory.register_engine(f"watched_{_name}", f"verl.sync.{_name}", "Receiver")


class WorkerExtension:
    """Mixed into vLLM's worker, for what only the worker knows."""

    vllm_config: Any
    model_runner: Any
    weight_transfer_engine: Any
    _held: HeldBase | None = None

    def load_file(self, update: WeightUpdate, version: int) -> None:
        """New weights from a memory-mapped file: see ``verl.sync.file``."""
        if self._held is None:
            self._held = HeldBase()
        with set_current_vllm_config(self.vllm_config):
            load_file(self.model_runner.get_model(), update, version, self._held)
        _pack_anew(self.model_runner.get_model())

    def received_checksum(self) -> int:
        """Of the weights that came by a GPU transfer: see ``verl.sync.gpu``."""
        checksum: int = self.weight_transfer_engine.received()
        _pack_anew(self.model_runner.get_model())
        return checksum

    def loaded_sums(self, names: Sequence[str] | None) -> Sums:
        """What the model's parameters now hold, of these names or of all; a tied one stands under each of its names."""
        account = Fingerprint()
        for name, parameter in self.model_runner.get_model().named_parameters(remove_duplicate=False):
            if names is None or name in names:
                account.add(name, parameter)
        return account.sums()

    def shared_memory_name(self) -> str:
        """How the names of this engine's shared-memory segments begin; empty if it has none."""
        return os.environ.get("VLLM_DIST_IDENT", "")
