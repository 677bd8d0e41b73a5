"""What every vLLM worker process imports before it loads the model (vLLM's ``worker_extension_cls``).

On import, once a process:
- receivers of GPU transfers that check what came are registered with vLLM as ``watched_ipc`` and ``watched_nccl``;
- on CPU, vLLM's linear layers are kept plain. It would pack each weight for oneDNN and drop the raw one: an update then
  cannot be loaded in place, and a tied LM head silently keeps its packed copy of the OLD embedding (greedy tokens still
  look sane; log-probs are off by 1). ``torch.nn.functional.linear`` on the raw parameter costs little and is exact.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils as linear_layers
from vllm.platforms import current_platform

from verl.sync import Sums, WeightUpdate
from verl.sync.canary import Fingerprint
from verl.sync.file import HeldBase, load_file

_pack = linear_layers.dispatch_cpu_unquantized_gemm


def _keep_plain(layer: Any, remove_weight: bool) -> None:
    """Stand in for vLLM's function of that place: compute with the parameter itself, whatever it holds by then."""
    if layer.weight.ndim == 2:
        layer.cpu_linear = torch.nn.functional.linear
    else:
        _pack(layer, remove_weight)


if current_platform.is_cpu():
    linear_layers.dispatch_cpu_unquantized_gemm = _keep_plain

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

    def received_checksum(self) -> int:
        """Of the weights that came by a GPU transfer: see ``verl.sync.gpu``."""
        checksum: int = self.weight_transfer_engine.received()
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
