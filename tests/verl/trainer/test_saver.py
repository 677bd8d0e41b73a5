"""Checkpoints on their way: named when whole, the last good one until then."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl.errors import InfrastructureError
from verl.trainer.run_folder import RunFolder
from verl.trainer.saver import Saver
from verl.trainer.state import Best, LoopState


class SlowLearners:
    """Writes what a learner would, but says that it is written only when told."""

    def __init__(self) -> None:
        self.written = True
        self.error: Exception | None = None

    async def save(self, folder: Path, *, hugging_face: bool, background: bool, previous: Path | None) -> None:
        (folder / "learner").mkdir()
        if hugging_face:
            (folder / "hf").mkdir()
        self.written = not background

    async def saved(self, *, wait: bool) -> bool:
        if self.error is not None:
            raise self.error
        self.written = self.written or wait
        return self.written


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", "name: run\n", fresh=False)


def saver(folder: RunFolder, learners: SlowLearners, *, background: bool) -> Saver:
    return Saver(folder, learners, keep=1, background=background)  # type: ignore[arg-type]


def steps(folder: RunFolder) -> list[str]:
    return [path.name for path in folder.resumable()]


async def test_at_once_means_whole_when_it_returns(folder: RunFolder) -> None:
    await saver(folder, SlowLearners(), background=False).save(LoopState("train", 3), 3, hugging_face=False)
    assert steps(folder) == ["step_000003"]


async def test_in_the_background_the_older_one_stays_until_the_newer_is_whole(folder: RunFolder) -> None:
    learners = SlowLearners()
    ours = saver(folder, learners, background=True)
    await ours.save(LoopState("train", 1), 1, hugging_face=False)
    await ours.settle(wait=True)
    state = LoopState("train", 2, best={"best_dev": Best(0.5, 2)})
    await ours.save(state, 2, hugging_face=True)
    state.step = 3  # training goes on; the checkpoint is of step 2
    await ours.settle(wait=False)
    assert steps(folder) == ["step_000001"]
    assert not (folder.path / "best_dev").exists()
    learners.written = True
    await ours.settle(wait=False)
    assert steps(folder) == ["step_000002"]
    assert (folder.path / "best_dev").resolve() == folder.checkpoint(2) / "hf"
    loop = folder.read_json("checkpoints/step_000002/loop.json")
    assert loop is not None
    assert loop["step"] == 2


async def test_the_next_save_waits_for_the_one_before(folder: RunFolder) -> None:
    ours = saver(folder, SlowLearners(), background=True)
    for step in (1, 2):
        await ours.save(LoopState("train", step), step, hugging_face=False)
    assert steps(folder) == ["step_000001"]


async def test_a_save_that_failed_keeps_the_last_good_one_and_is_told(folder: RunFolder) -> None:
    learners = SlowLearners()
    ours = saver(folder, learners, background=True)
    await ours.save(LoopState("train", 1), 1, hugging_face=False)
    await ours.settle(wait=True)
    await ours.save(LoopState("train", 2), 2, hugging_face=False)
    learners.error = InfrastructureError("no space left")
    with pytest.raises(InfrastructureError, match="no space left"):
        await ours.settle(wait=False)
    assert steps(folder) == ["step_000001"]
