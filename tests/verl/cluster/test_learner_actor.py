"""A learner rank beside an engine on one GPU gives cached memory back after every call that may have taken some."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl.cluster import actors

CALLS: dict[str, tuple[Any, ...]] = {
    "begin_phase": (None,),
    "update": ([], 1.0),
    "reference_kl": ([], 1.0, "k1"),
    "sum_logprobs": ([],),
    "publish": (0, "float32", "nowhere"),
    "send": (None, "float32", {}, 1),
    "probe": ([],),
    "weights_hash": (),
    "load": ("nowhere",),
}


@pytest.mark.parametrize("method", [*CALLS, "save"])
@pytest.mark.parametrize("shared", [True, False])
def test_cached_memory_is_given_back_even_where_the_call_fails(
    method: str, shared: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(True))
    monkeypatch.setattr(actors, "log_to", lambda path: None)
    actor = actors.LearnerActor(log=tmp_path / "log")
    actor._shares_gpu = shared
    monkeypatch.setattr(actor, "_learner", SimpleNamespace(), raising=False)
    options = {"hugging_face": False, "background": False, "previous": None} if method == "save" else {}
    with pytest.raises(AttributeError):
        getattr(actor, method)(*(CALLS.get(method) or (str(tmp_path),) * (method == "save")), **options)
    assert given == [True] * shared


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Starts a rank as far as its process is prepared; the group and the model are left out."""
    monkeypatch.setattr(actors, "log_to", lambda path: None)
    monkeypatch.setattr(actors, "this_machine", lambda: "127.0.0.1")
    monkeypatch.setattr(actors, "this_node", lambda: "")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr("verl.learner.distributed.init_process", lambda *_, **__: None)
    monkeypatch.setattr("verl.learner.learner.Learner", lambda *_, **__: None)
    for name in ("CUBLAS_WORKSPACE_CONFIG", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)

    def started(device: str = "cpu", *, deterministic: bool = False) -> None:
        place = actors.LearnerPlace(0, 1, "127.0.0.1", 0, device, deterministic=deterministic)
        config: Any = None
        actors.LearnerActor(log=tmp_path / "log").start(place, "", config, seed=0, rejected=tmp_path)

    return started


@pytest.mark.parametrize(("device", "deterministic"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_repeatable_kernels_are_asked_for_on_a_gpu_and_where_told(
    device: str, deterministic: bool, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, **_: asked.append(on))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    start(device, deterministic=deterministic)
    asks = device == "cuda" and deterministic
    assert asked == [True] * asks
    assert torch.utils.deterministic.fill_uninitialized_memory != asks  # type: ignore[attr-defined]


def test_ranks_of_several_machines_meet_where_the_cluster_knows_them_unless_told_otherwise(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    start()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_answers_with_the_scores_that_all_of_them_have(
    rank: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(actors, "log_to", lambda path: None)
    actor = actors.LearnerActor(log=tmp_path / "log")
    rows = [torch.ones(3).numpy()]
    scores = SimpleNamespace(reference_kl=lambda *_: rows, logprobs=lambda *_: rows)
    monkeypatch.setattr(actor, "_learner", scores, raising=False)
    monkeypatch.setattr(actor, "_rank", rank, raising=False)
    assert actor.reference_kl([], 1.0, "k1") == (rows if rank == 0 else None)
    assert actor.sum_logprobs([]) == ([3.0] if rank == 0 else None)
