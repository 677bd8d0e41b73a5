"""What is evaluated: a run under its own configuration with overrides, or a folder under a recipe's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search_agent import evaluate
from search_agent.console.command import load_config, results_config
from search_agent.evaluate import evaluated_config, keep_config, newest_run, writable_folder
from search_agent.evaluation.reading import protocol_of
from verl.config.compose import from_yaml, to_yaml
from verl.errors import UserError
from verl.trainer.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of another recipe than the default one, finished, with a best checkpoint."""
    monkeypatch.setattr(evaluate, "RUNS", tmp_path)
    folder = tmp_path / "run"
    (folder / "best_dev").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(results_config(load_config(["recipe=search_r1_mini", "seed=5"]))))
    (folder / "summary.json").write_text("{}")
    return folder


def test_a_run_is_evaluated_under_its_own_configuration(run: Path) -> None:
    config = evaluated_config([f"model={run}"])
    assert config.model == str(run / "best_dev")
    assert (config.name, config.seed, config.protocol.module) == (
        "search_r1_mini",
        5,
        "search_agent.protocols.search_r1",
    )


def test_words_on_the_command_line_override_keys_and_whole_groups(run: Path) -> None:
    words = ["data=files", "data.train=a", "data.dev=b", "data.test=c.jsonl", "evaluation.test_tasks=7", "reward=f1"]
    config = evaluated_config([f"model={run}", *words])
    assert config.data.module == "search_agent.data.files"
    assert config.data.config.test == "c.jsonl"
    assert config.evaluation.test_tasks == 7
    assert config.reward.module == "search_agent.rewards.f1"
    assert config.seed == 5


@pytest.mark.parametrize("model", ["some-owner/some-model", None])
def test_a_file_of_ones_own_is_enough_to_be_evaluated_on(run: Path, model: str | None) -> None:
    config = evaluated_config([f"model={model or run}", "data=files", "data.test=c.jsonl", "data.dev=d.jsonl"])
    assert (config.data.config.test, config.data.config.dev) == ("c.jsonl", "d.jsonl")
    with pytest.raises(UserError, match=r"data\.test: missing"):
        evaluated_config([f"model={model or run}", "data=files"])


def test_a_key_that_does_not_exist_is_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.test_task: no such key; did you mean evaluation\.test_tasks"):
        evaluated_config([f"model={run}", "evaluation.test_task=7"])


def test_a_key_that_an_older_run_was_written_with_is_told_with_its_file(run: Path) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text() + "gone: 1\n")
    with pytest.raises(UserError) as error:
        evaluated_config([f"model={run}", "evaluation.test_task=7"])
    first, second = sorted(str(error.value).splitlines())
    assert first.startswith(f"{file}: gone: no such key")
    assert second.startswith("evaluation.test_task: no such key")


def test_a_run_without_a_chosen_checkpoint_says_so(run: Path) -> None:
    (run / "best_dev").rmdir()
    with pytest.raises(UserError, match="no checkpoint that was chosen on dev yet"):
        evaluated_config([f"model={run}"])


def test_without_a_model_the_run_that_finished_last_is_taken(run: Path) -> None:
    later = run.with_name("later")
    later.mkdir()
    (later / "summary.json").write_text("{}")
    os.utime(run / "summary.json", (1, 1))
    assert newest_run() == later
    os.utime(later / "summary.json", (0, 0))
    assert evaluated_config([]).model == str(run / "best_dev")


def test_without_any_run_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "RUNS", tmp_path)
    with pytest.raises(UserError, match=r"train one with bash cmd/train\.sh"):
        newest_run()


def test_any_other_folder_or_hub_name_is_evaluated_under_a_recipe(run: Path) -> None:
    config = evaluated_config(["model=some-owner/some-model", "recipe=research_mini"])
    assert (config.model, config.name) == ("some-owner/some-model", "research_mini")


def test_a_choice_among_presets_takes_the_place_of_all_that_stood_under_its_name(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.yaml").write_text("plugin: nowhere\n")
    config = evaluated_config([f"model={run}", "data=files", f"data.test={tmp_path / 'elsewhere'}", "hardware=gpu8"])
    assert config.data.config.test == str(tmp_path / "elsewhere"), "a path is never read as a preset"
    assert config.cluster.gpus_per_process == 0.5
    with pytest.raises(UserError, match=r"reward=f2: no such preset; did you mean f1\?"):
        evaluated_config([f"model={run}", "reward=f2"])


def test_a_folder_that_cannot_be_written_to_is_told_with_the_key_for_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        writable_folder(tmp_path / "file" / "eval")
    assert str(error.value) == f"{tmp_path / 'file' / 'eval'} cannot be written to (Not a directory): " + (
        "write run_dir= with another folder"
    )
    assert writable_folder(tmp_path / "new" / "eval").is_dir()
    assert not list((tmp_path / "new" / "eval").iterdir())


def test_an_evaluation_says_in_its_folder_what_was_played(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "eval")
    folder.path.mkdir()
    for seed in (5, 6):  # as the newest evaluation was
        keep_config(folder, evaluated_config([f"model={run}", f"seed={seed}"]))
        assert from_yaml(folder.config)["seed"] == seed
    assert protocol_of(folder.path).name == "search_r1"
    assert from_yaml(folder.config)["model"] == str(run / "best_dev")


def test_an_evaluation_in_the_folder_of_a_training_run_leaves_its_configuration(run: Path) -> None:
    for part in ("logs", "trajectories", "checkpoints"):
        (run / part).mkdir()
    before = (run / "config.yaml").read_text()
    keep_config(RunFolder(run), evaluated_config([f"model={run}", "seed=6"]))
    assert (run / "config.yaml").read_text() == before
