"""What is saved and loaded goes on exactly; what is exported loads elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from transformers import AutoModelForCausalLM

from verl.algorithms.config import LossConfig
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.learner import checkpoint
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.learner import Learner
from verl.learner.phase import Phase
from verl.sync.file import HeldBase, publish

MakeSamples = Callable[..., list[TrainingSample]]
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, schedule="linear")


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(kl_coefficient=0.1)], ids=["plain", "kl"])
def test_a_loaded_checkpoint_goes_on_exactly(
    lora: LoraConfig | None, loss: LossConfig, model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    config = LearnerConfig(lora=lora)
    learner = Learner(model_folder, config, seed=0)
    learner.begin_phase(Phase(OPTIMIZER, loss, 10, 2))
    learner.update(make_samples(5, seed=1))
    learner.save_checkpoint(tmp_path / "saved")
    resumed = Learner(model_folder, config, seed=1)
    resumed.logprobs(make_samples(2))  # leaves nothing behind that would hide the loaded weights
    resumed.load_checkpoint(tmp_path / "saved")
    assert resumed.weights_hash() == learner.weights_hash()
    for seed in (2, 3):
        assert resumed.update(make_samples(5, seed=seed)) == learner.update(make_samples(5, seed=seed))
    assert resumed.weights_hash() == learner.weights_hash()


def test_saving_again_replaces_and_leaves_nothing_beside(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(), 10))
    (tmp_path / ".saved.partial").mkdir()  # what a killed save leaves
    learner.save_checkpoint(tmp_path / "saved")
    learner.update(make_samples(3))
    learner.save_checkpoint(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    resumed = Learner(model_folder, LearnerConfig(), seed=0)
    resumed.load_checkpoint(tmp_path / "saved")
    assert resumed.weights_hash() == learner.weights_hash()


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no learner\.json"):
        Learner(model_folder, LearnerConfig(), seed=0).load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["model_folder", "untied_folder"])
def test_export_loads_in_transformers_with_these_weights(
    kind: str, make_samples: MakeSamples, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(kind)
    (source / "tokenizer.json").write_text("{}")
    learner = Learner(source, LearnerConfig(), seed=0)
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(), 10))
    learner.update(make_samples(4))
    learner.save_hf(tmp_path / "hf", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.dtype == torch.bfloat16
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    expected = dict(learner.named_weights(torch.bfloat16))
    assert set(expected) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def engine_weights(learner: Learner, folder: Path) -> dict[str, Any]:
    """What an engine has after it was sent a base and adapters."""
    base = publish(learner.named_base(torch.float32), 1, folder)
    held = HeldBase()
    assert held.switch(base)
    adapters, device = learner.named_adapters(), torch.device("cpu")
    return {n: w.tolist() for n, w in held.merged(adapters, learner.adapter_scale, device, everything=True)}


def test_adapter_starts_at_nothing_trains_alone_and_merges(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    samples = make_samples(4)
    plain = Learner(model_folder, LearnerConfig(), seed=0)
    learner = Learner(model_folder, LearnerConfig(lora=LoraConfig(rank=4, alpha=8)), seed=0)
    assert learner.weights_hash() == plain.weights_hash()
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(kl_coefficient=0.1), 10))
    learner.update(samples)
    learner.update(samples)
    reference = learner.logprobs(samples, reference=True)
    for ours, base in zip(reference, plain.logprobs(samples), strict=True):
        assert ours == pytest.approx(base, abs=1e-6)
    assert engine_weights(learner, tmp_path) == {name: w.tolist() for name, w in learner.named_weights()}
    learner.save_hf(tmp_path / "hf")
    merged = Learner(tmp_path / "hf", LearnerConfig(), seed=0)
    moved = 0.0
    for ours, theirs, base in zip(learner.logprobs(samples), merged.logprobs(samples), reference, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
        moved = max(moved, float(abs(ours - base).max()))
    assert moved > 1e-3


def test_a_warm_up_of_all_weights_stays_under_the_adapters_and_in_the_checkpoint(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    config = LearnerConfig(lora=LoraConfig(rank=4, alpha=8))
    learner, resumed = (Learner(model_folder, config, seed=0) for _ in range(2))
    loaded = learner.weights_hash()
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(name="weighted_nll"), 10, all_weights=True))
    learner.update(make_samples(5, seed=1))
    warm = learner.weights_hash()
    assert warm != loaded
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(kl_coefficient=0.1), 10))
    assert learner.weights_hash() == warm, "adapters start as nothing"
    base = {name: weight.to_local().clone() for name, weight in learner.model.weights.items() if "lora_" not in name}
    learner.update(make_samples(5, seed=2))
    assert learner.weights_hash() != warm
    assert all(torch.equal(learner.model.weights[name].to_local(), weight) for name, weight in base.items())
    learner.save_checkpoint(tmp_path / "saved")
    resumed.load_checkpoint(tmp_path / "saved")
    assert resumed.weights_hash() == learner.weights_hash()
    assert resumed.update(make_samples(5, seed=3)) == learner.update(make_samples(5, seed=3))


def test_a_save_in_the_background_holds_what_was_there_when_it_began(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(kl_coefficient=0.1), 10))
    learner.update(make_samples(4, seed=1))
    before = learner.weights_hash()
    may_write, write = threading.Event(), save_distributed

    def held_back(*args: Any, **kwargs: Any) -> Any:
        assert may_write.wait(60)
        return write(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_distributed", held_back)
    learner.save_checkpoint(tmp_path / "saved", background=True)
    learner.save_hf(tmp_path / "hf", background=True)
    after = learner.update(make_samples(4, seed=2))
    assert learner.saving
    assert not (tmp_path / "saved").exists()  # what a kill would leave now: nothing that looks whole
    may_write.set()
    learner.wait_saved()
    assert not learner.saving
    resumed = Learner(model_folder, LearnerConfig(), seed=1)
    resumed.load_checkpoint(tmp_path / "saved")
    assert resumed.weights_hash() == before == Learner(tmp_path / "hf", LearnerConfig(), seed=2).weights_hash()
    assert resumed.update(make_samples(4, seed=2)) == after


def test_a_save_that_fails_in_the_background_is_told_and_leaves_the_last_good_one(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(), 10))
    learner.save_checkpoint(tmp_path / "saved")
    good = learner.weights_hash()
    learner.update(make_samples(4))

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_distributed", full)
    learner.save_checkpoint(tmp_path / "saved", background=True)
    with pytest.raises(OSError, match="no space left"):
        learner.wait_saved()
    monkeypatch.undo()
    learner.load_checkpoint(tmp_path / "saved")
    assert learner.weights_hash() == good


def test_a_kill_between_the_two_renames_loses_nothing(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(Phase(OPTIMIZER, LossConfig(), 10))
    learner.save_checkpoint(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / ".saved.old")
    with pytest.raises(OSError, match="torn"), checkpoint.written_whole(tmp_path / "saved"):
        raise OSError("torn")
    learner.load_checkpoint(tmp_path / "saved")


def test_a_phase_that_grew_goes_on_as_if_it_had_always_been_that_long(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    schedule = OptimizerConfig(learning_rate=1e-3, schedule="linear")
    short = Learner(model_folder, LearnerConfig(), seed=0)
    short.begin_phase(Phase(schedule, LossConfig(), 2))
    for _ in range(2):
        short.update(make_samples(4))
    short.save_checkpoint(tmp_path / "end")
    grown = Learner(model_folder, LearnerConfig(), seed=1)
    grown.load_checkpoint(tmp_path / "end", batches=4)
    rates = [grown.update(make_samples(4))["learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([5e-4, 2.5e-4]), "halfway down a schedule of four steps, not at the end of one of two"
    grown.save_checkpoint(tmp_path / "grown")
    again = Learner(model_folder, LearnerConfig(), seed=2)
    again.load_checkpoint(tmp_path / "grown")
    assert again.phase.batches == 4


def test_ranks_wait_for_hours_and_not_ten_minutes_for_the_one_that_writes(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ranks agree on while files are written goes over a patient group, in the foreground too."""
    groups: list[Any] = []
    patience: list[float] = []
    barrier, new_group = dist.barrier, dist.new_group

    def agreed(group: Any = None, **options: Any) -> Any:
        groups.append(group)
        return barrier(group, **options)

    def made(*arguments: Any, **options: Any) -> Any:
        patience.append(options["timeout"].total_seconds())
        return new_group(*arguments, **options)

    monkeypatch.setattr(dist, "barrier", agreed)
    monkeypatch.setattr(dist, "new_group", made)
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(Phase())
    learner.save_checkpoint(tmp_path / "learner")
    learner.save_hf(tmp_path / "hf")
    assert len(groups) >= 4  # before and after each of the two is written
    assert not {None, dist.group.WORLD} & set(groups)
    assert len(patience) == 1
    assert patience[0] >= 3600
