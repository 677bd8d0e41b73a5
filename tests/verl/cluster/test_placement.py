"""Who shares a GPU with whom, as the placement group is asked for it."""

from __future__ import annotations

import pytest

from verl.cluster.config import ClusterConfig
from verl.cluster.placement import places
from verl.errors import UserError


def test_split_gives_each_process_gpus_of_its_own() -> None:
    found = places(ClusterConfig(gpus_per_process=1), ranks=2, workers=2, gpus_per_worker=4)
    assert found.bundles == [{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 1, "GPU": 4}] * 2
    assert (list(found.learner), list(found.rollout)) == ([0, 1], [2, 3])


def test_shared_pairs_a_rank_with_a_worker_on_each_gpu() -> None:
    found = places(ClusterConfig(placement="shared", gpus_per_process=0.5), ranks=3, workers=3)
    assert found.bundles == [{"CPU": 2, "GPU": 1}] * 3
    assert list(found.learner) == list(found.rollout) == [0, 1, 2]


@pytest.mark.parametrize(("ranks", "workers", "gpus_per_worker"), [(2, 3, 1), (2, 2, 2)])
def test_shared_refuses_what_cannot_be_paired(ranks: int, workers: int, gpus_per_worker: int) -> None:
    config = ClusterConfig(placement="shared", gpus_per_process=0.5)
    with pytest.raises(UserError, match=f"cluster.learner_ranks={workers}"):
        places(config, ranks, workers, gpus_per_worker)


@pytest.mark.parametrize("placement", ["split", "shared"])
def test_on_cpu_each_process_is_a_place(placement: str) -> None:
    found = places(ClusterConfig(placement=placement), ranks=1, workers=2)  # type: ignore[arg-type]
    assert found.bundles == [{"CPU": 1}] * 3
    assert (list(found.learner), list(found.rollout)) == ([0], [1, 2])


def test_an_evaluation_gives_each_engine_the_gpu_that_it_would_share() -> None:
    found = places(ClusterConfig(placement="shared", gpus_per_process=0.5), ranks=0, workers=2)
    assert found.bundles == [{"CPU": 1, "GPU": 1}] * 2
    assert list(found.rollout) == [0, 1]


def test_neighbouring_ranks_are_on_one_machine_in_whatever_order_ray_gave_the_places() -> None:
    found = places(ClusterConfig(gpus_per_process=1), ranks=5, workers=1)
    assert list(found.by_machine(["b", "a", "b", "c", "a", "b"]).learner) == [0, 2, 1, 4, 3]
    assert list(found.by_machine(["a"] * 6).learner) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [1, 0.25])
def test_two_processes_share_a_gpu_and_no_third(share: float) -> None:
    with pytest.raises(UserError, match=r"write 0\.5, or placement=split"):
        ClusterConfig(placement="shared", gpus_per_process=share)


@pytest.mark.parametrize("share", [0.5, 2])
def test_apart_each_process_has_one_gpu(share: float) -> None:
    with pytest.raises(UserError, match="write 1, or placement=shared"):
        ClusterConfig(gpus_per_process=share)


def test_the_end_of_a_stall_comes_after_its_warning() -> None:
    with pytest.raises(UserError, match=r"stall_error_s=5: write 10 or more"):
        ClusterConfig(stall_warning_s=10, stall_error_s=5)
