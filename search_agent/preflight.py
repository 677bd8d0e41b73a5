"""What can be known to fail before any process is started: sizes, disk, the model's folder, the retriever.

Everything that only needs arithmetic and small files is checked at once, before data is read, and reported together.
Then servers that others run are asked whether they are ready, and whether they serve what the run began with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from search_agent.plan import gpus_needed, make_plan
from search_agent.sizes import disk_gib, machine_gib
from verl.cluster.capacity import local_gpus
from verl.cluster.config import ClusterConfig
from verl.cluster.processes import available_memory_gib
from verl.errors import InfrastructureError, UserError
from verl.rollout.engine_checks import check_model
from verl.trainer.model_shape import EMBEDDED, ModelShape, is_known, read_shape

if TYPE_CHECKING:
    from verl.trainer.run_folder import RunFolder

READY_TIMEOUT_S = 60.0
"""Time for a server that is just starting; one that loads an index for minutes is to be started first."""
RECORD = "retriever.json"


def check_start(config: RunConfig, path: Path) -> None:
    """Raises UserError with every fault that arithmetic and small files show of a run in the folder ``path``."""
    faults = find_faults(config, path)
    if faults:
        raise UserError("\n".join(faults))


async def check_retriever(config: RunConfig, folder: RunFolder) -> None:
    """Wait for servers that others run, and record what they serve. Raises UserError; see ``check_manifest``."""
    if config.retriever != "embedded":
        urls = [url.strip() for url in config.retriever.split(",")]
        check_manifest(folder, await read_manifests(config, urls))


def find_faults(config: RunConfig, path: Path) -> list[str]:
    """One line for each fault of the model's folder, the plan, this machine's memory, the disk that holds ``path``."""
    faults = model_faults(config) + address_faults(config)
    if config.cluster.address == "local":
        faults += check_gpus(gpus_needed(config), local_gpus())
    shape: ModelShape | None = None
    if config.model == "embedded":
        shape = EMBEDDED
    elif not faults and (Path(config.model).exists() or is_known(config.model)):
        shape = read_shape(config.model)  # that of another model of the hub is known after its download
    if shape is not None:
        faults += make_plan(config, shape).problems
        faults += check_disk(disk_gib(config, shape), path)
        if not config.cluster.gpus_per_process:
            faults += check_memory(machine_gib(config, shape), available_memory_gib())
    return faults + transfer_faults(config.rollout.engine.weight_transfer, config.cluster)


def transfer_faults(transfer: str, cluster: ClusterConfig) -> list[str]:
    """Why weights cannot travel in the way that ``rollout.engine.weight_transfer`` names."""
    why = ""
    if transfer != "shm" and not cluster.gpus_per_process:
        why = "goes from GPU to GPU, and cluster.gpus_per_process is 0: write shm"
    elif transfer == "ipc" and cluster.placement == "split":
        why = "maps memory of a learner rank on the engine's own GPU, and placement=split has none there: write nccl"
    elif transfer == "nccl" and cluster.placement == "shared":
        why = "takes a GPU for each process, and placement=shared has the learner on the engine's: write ipc"
    return [f"rollout.engine.weight_transfer={transfer} {why}"] if why else []


def address_faults(config: RunConfig) -> list[str]:
    """What ``retriever`` names that is no address."""
    if config.retriever == "embedded":
        return []
    urls = tuple(url.strip() for url in config.retriever.split(","))
    return [f"retriever={line.removeprefix('urls: ')}" for line in _said(replace, config.client, urls=urls)]


def check_gpus(needed: float, present: int | None) -> list[str]:
    """A fault if a run on this machine alone claims more GPUs than it has; none if they cannot be counted."""
    if present is None or needed <= present:
        return []
    return [
        f"the run takes {needed:g} GPUs and this machine has {present}: run it where they are, write cluster.address= "
        "of a Ray cluster, or see what it would start with dry_run=true"
    ]


def model_faults(config: RunConfig) -> list[str]:
    """Why the folder that ``model`` names cannot be served; nothing is known of a hub name."""
    model = Path(config.model)
    if not model.exists():
        return [f"model={model}: there is no such folder; give one, or a hub name"] if _is_path(model) else []
    if (model / "best_dev").exists():
        return [f"model={model} is a run folder: write model={model / 'best_dev'} for its best checkpoint"]
    on_cpu = not config.cluster.gpus_per_process
    faults = _said(check_model, model, config.rollout.engine, on_cpu=on_cpu) or _said(check_causal, model)
    for file in sorted(model.glob("*.safetensors")):
        faults += _said(check_whole, file)
    return faults


def _is_path(model: Path) -> bool:
    """Whether a name that is no folder was meant for one: hub names are ``NAME`` or ``OWNER/NAME``."""
    above = model.parts[:-1]
    return len(above) > 1 or any(part in ("~", "..", "/") for part in above) or (bool(above) and model.parent.is_dir())


def check_causal(folder: Path) -> None:
    """Raises UserError unless the folder's ``config.json`` names a causal language model."""
    names = json.loads((folder / "config.json").read_text()).get("architectures") or ["(none named)"]
    if not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise UserError(
            f"model {folder} is of kind {', '.join(map(str, names))}, not a causal language model: give one whose "
            "config.json names ...ForCausalLM under architectures"
        )


def check_whole(file: Path) -> None:
    """Raises UserError if a safetensors file is shorter than its header says, or has none: a download cut short."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 2 <= length <= size - 8 else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        ends = []
    if not ends or size < 8 + length + max(ends):
        raise UserError(f"{file} is damaged or was cut short ({size:,} bytes): export or download it again")


def check_memory(needed_gib: float, available_gib: float) -> list[str]:
    """A fault if what the run takes for certain (weights, optimizer, KV caches) exceeds this machine's free memory."""
    if needed_gib <= available_gib:
        return []
    return [
        f"the run takes {needed_gib:.1f} GiB of memory and {available_gib:.1f} GiB are free: lower "
        "rollout.engine.kv_cache_gib or rollout.workers, take a smaller model, or stop other programs"
    ]


def check_disk(needed_gib: float, path: Path) -> list[str]:
    """A fault if ``path`` cannot be a folder, or if its disk has less room than the run's checkpoints take."""
    existing = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "is a file" if not existing.is_dir() else "may not be written to"
        return [f"run_dir={path}: {existing} {what}; write run_dir= with another folder"]
    free_gib = shutil.disk_usage(existing).free / 2**30
    if free_gib >= needed_gib:
        return []
    return [
        f"run_dir={path}: the checkpoints need about {needed_gib:.1f} GiB and {free_gib:.1f} GiB are free; free some, "
        "lower trainer.keep_checkpoints, or write run_dir= on another disk"
    ]


async def read_manifests(
    config: RunConfig, urls: Sequence[str], timeout_s: float = READY_TIMEOUT_S
) -> dict[str, dict[str, Any]]:
    """The manifest of each server by its address, empty for a server of others that has none.

    Waits for each to be ready. Raises UserError that names the first one that is not, or cannot be reached.
    """
    from search_agent.retrieval.client.client import RetrievalClient
    from search_agent.retrieval.client.transport import NotFound

    manifests: dict[str, dict[str, Any]] = {}
    for url in urls:
        async with RetrievalClient(replace(config.client, urls=(url,), retries=0)) as client:
            try:
                await client.wait_ready(timeout_s)
                manifests[url] = await client.info()
            except NotFound:
                manifests[url] = {}
            except InfrastructureError as error:
                remedy = "start it (bash retrieval_launch.sh corpus=FILE port=N), or correct the address"
                raise UserError(f"retriever={url}: {error}; {remedy}") from error
    return manifests


def check_manifest(folder: RunFolder, manifests: dict[str, dict[str, Any]]) -> None:
    """Record what is served in the run's folder; on a resume, compare with what was recorded.

    Raises UserError if servers differ from one another, or from the corpus and engine that the run began with.
    """
    prints = {url: manifest.get("fingerprint") for url, manifest in manifests.items()}
    first = next(iter(manifests))
    for url in manifests:
        if prints[url] != prints[first]:
            told = f"{_name(manifests[first])} at {first}, {_name(manifests[url])} at {url}"
            raise UserError(f"retriever: the servers do not serve the same corpus ({told}); give servers of one corpus")
    recorded = folder.read_json(RECORD)
    if recorded is None:
        folder.write_json(RECORD, manifests[first])
    elif recorded.get("fingerprint") != prints[first]:
        raise UserError(
            f"retriever={first} serves {_name(manifests[first])}, this run began with {_name(recorded)} "
            f"(see {folder.path / RECORD}): serve that corpus again, give another run_dir, or write fresh=true"
        )


def _name(manifest: dict[str, Any]) -> str:
    if not manifest:
        return "something without a manifest"
    return f"{manifest.get('corpus')} ({manifest.get('documents')} passages, {str(manifest.get('fingerprint'))[:8]})"


def _said(check: Callable[..., None], *args: Any, **options: Any) -> list[str]:
    """What a check complains about, one line each."""
    try:
        check(*args, **options)
    except UserError as error:
        return str(error).splitlines()
    return []
