"""KTO's margin on outputs held out: sums of the models, the interval of Welch, labels of either kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.embedded.tiny_model import train_tokenizer, write_model
from preprocess.rare.margin import Config, main, margin, read, rewards
from verl.data.tasks import Task
from verl.errors import UserError
from verl.learner.config import LearnerConfig
from verl.learner.learner import Learner
from verl.rollout.episodes import Episode, write_episodes
from verl.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(name) for name in ("after", "before")]
    for seed, folder in enumerate(folders):
        tokenizer = train_tokenizer(["who wrote it ? mara did not"], folder)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(str(folder))
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        write_model(folder, len(tokenizer), seed)
    return folders


def labelled(folder: Path) -> Path:
    said = [("mara did", True), ("mara did not", False), ("mara", True), ("not", False)]
    rows = [{"instruction": "who wrote it ?", "predict": text, "label": label} for text, label in said]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "labelled.jsonl"


def test_the_margin_is_that_of_the_two_models(
    models: list[Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    config = Config(str(models[0]), str(models[1]), str(labelled(tmp_path)), beta=0.5)
    samples, wanted = read(config)
    assert wanted.tolist() == [True, False, True, False]
    found = rewards(config, samples)
    ours, theirs = (Learner(folder, LearnerConfig(), seed=0).logprobs(samples) for folder in models)
    assert found == pytest.approx([0.5 * (a.sum() - b.sum()) for a, b in zip(ours, theirs, strict=True)], abs=1e-5)
    assert rewards(Config(str(models[0]), str(models[0]), config.labelled), samples) == pytest.approx([0] * 4)
    monkeypatch.setattr("verl.learner.__main__.join_group", lambda: "cpu")  # this process is in one
    assert main([f"model={models[0]}", f"reference={models[1]}", f"labelled={config.labelled}", "beta=0.5"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["margin"]["estimate"] == pytest.approx(told["desirable"]["estimate"] - told["undesirable"]["estimate"])
    assert told["margin"]["low"] < told["margin"]["estimate"] < told["margin"]["high"]


def test_the_interval_is_welchs() -> None:
    found, wanted = np.array([1.0, 2.0, 3.0, 0.0, 0.5]), np.array([True, True, True, False, False])
    interval = margin(found, wanted)
    # 1.75 +- t(0.975; 2.635 degrees) * sqrt(1/3 + 0.125/2)
    assert (interval.estimate, interval.n) == (1.75, 5)
    assert (interval.low, interval.high) == pytest.approx((1.75 - 2.1687, 1.75 + 2.1687), abs=1e-3)


def test_episodes_of_a_run_are_labelled_by_their_reward(models: list[Path], tmp_path: Path) -> None:
    def episode(n: int, reward: float) -> Episode:
        trajectory = Trajectory(f"t{n}", 0, outcome="finished", reward=reward)
        trajectory.append_prompt([3, 4], "who")
        trajectory.append_generated([5, 6 + n], "x", [0.0, 0.0], [0, 0], "end_of_turn")
        return Episode(Task(f"t{n}", "q", ("a",)), "test", trajectory)

    file = tmp_path / "test-before-sampled_000000.jsonl.gz"
    write_episodes(file, [episode(n, float(n % 2)) for n in range(4)])
    samples, wanted = read(Config(str(models[0]), str(models[1]), str(file)))
    assert (len(samples), wanted.tolist()) == (4, [False, True, False, True])
    write_episodes(file, [episode(n, 1.0) for n in range(4)])
    with pytest.raises(UserError, match="4 desirable of 4 outputs: two of either kind"):
        read(Config(str(models[0]), str(models[1]), str(file)))
