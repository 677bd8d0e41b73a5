"""Two systems on the same questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from search_agent.evaluation.compare import compare, facts, main, read_arguments
from search_agent.evaluation.outcomes import Outcomes, read_outcomes
from search_agent.evaluation.statistics import paired_bootstrap
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episodes import Episode, write_episodes
from verl.trajectory import Trajectory


def episode(task: Task, answer: str | None, sample: int = 0) -> Episode:
    """An episode that answers at once; None is one that infrastructure ended."""
    trajectory = Trajectory(task.id, sample, outcome="aborted" if answer is None else "finished")
    trajectory.append_prompt([1], "?")
    if answer is not None:
        trajectory.append_generated([2], f"<think> x </think><answer> {answer} </answer>", [0.0], [0], "stop")
    return Episode(task, "test", trajectory)


def task(identifier: str, source: str = "", gold: str = "yes") -> Task:
    return Task(identifier, f"Is {identifier}?", (gold,), {"data_source": source} if source else {})


Answers = Sequence[tuple[Task, Sequence[str | None]]]


def run(folder: Path, answers: Answers, stage: str = "test-after-greedy", step: int = 0) -> Path:
    """A run folder whose stage has these answers, one an episode."""
    (folder / "trajectories").mkdir(parents=True, exist_ok=True)
    episodes = [episode(one, answer, n) for one, given in answers for n, answer in enumerate(given)]
    write_episodes(folder / "trajectories" / f"{stage}_{step:06d}.jsonl.gz", episodes)
    return folder


def outcomes(folder: Path, answers: Answers) -> Outcomes:
    return read_outcomes(run(folder, answers))


def test_questions_are_matched_by_id_and_others_are_told(tmp_path: Path) -> None:
    before = outcomes(tmp_path / "a", [(task("x"), ["no"]), (task("y"), ["yes"]), (task("only"), ["yes"])])
    after = outcomes(tmp_path / "b", [(task("y"), ["yes"]), (task("x"), ["yes"])])
    found = compare([before], [after])
    assert (found.questions, found.only_before, found.only_after) == (2, 1, 0)
    assert (found.scores["em"].before, found.scores["em"].after) == (0.5, 1.0)
    assert found.scores["em"].difference == paired_bootstrap([0, 1], [1, 1], seed=0)
    assert found.mcnemar == (0, 1, 1.0)
    assert "left out: 1 questions of before alone, 0 of after alone" in facts([before], [after], found)


def test_what_infrastructure_ended_counts_as_wrong_and_is_told(tmp_path: Path) -> None:
    before = outcomes(tmp_path / "a", [(task("x"), ["yes"]), (task("y"), ["yes"])])
    after = outcomes(tmp_path / "b", [(task("x"), [None]), (task("y"), ["yes"])])
    found = compare([before], [after])
    assert (found.scores["em"].after, found.failed_before, found.failed_after) == (0.5, 0, 1)
    assert any("0 episodes before, 1 after" in line for line in facts([before], [after], found))


def test_the_mean_over_sets_gives_each_set_the_same_weight(tmp_path: Path) -> None:
    tasks = [task("a", "large"), task("b", "large"), task("c", "large"), task("d", "small")]
    before = outcomes(tmp_path / "a", [(one, ["no"]) for one in tasks])
    after = outcomes(tmp_path / "b", [(one, ["yes" if one.id in "ad" else "no"]) for one in tasks])
    found = compare([before], [after])
    assert {name: row.after for name, row in found.by_set.items()} == {
        "large": pytest.approx(1 / 3),
        "small": 1.0,
        "mean": pytest.approx(2 / 3),
    }
    assert found.scores["em"].after == 0.5


def test_seeds_are_averaged_by_question_and_have_an_interval(tmp_path: Path) -> None:
    one = [
        outcomes(tmp_path / f"a{n}", [(task("x"), ["no"]), (task("y"), [answer])])
        for n, answer in enumerate(["yes", "no"])
    ]
    other = [outcomes(tmp_path / "b", [(task("x"), ["yes"]), (task("y"), ["yes"])])]
    found = compare(one, other)
    assert (found.scores["em"].before, found.scores["em"].after) == (0.25, 1.0)
    assert list(found.seeds) == ["before"]
    assert (found.seeds["before"].estimate, found.seeds["before"].n) == (0.25, 2)
    assert found.mcnemar is None


def test_several_samples_have_pass_and_majority(tmp_path: Path) -> None:
    before = outcomes(tmp_path / "a", [(task("x"), ["yes", "no", "no", "no"]), (task("y"), ["yes"] * 4)])
    after = outcomes(tmp_path / "b", [(task("x"), ["no", "yes", "yes", "yes"]), (task("y"), [None] * 4)])
    found = compare([before], [after])
    assert found.mcnemar is None
    assert found.scores["em"].before == (1 / 4 + 1) / 2
    assert {name: value[0] for name, value in found.sampled.items()} == {
        "pass@2": pytest.approx((0.5 + 1) / 2),
        "pass@4": 1.0,
        "maj@2": 1.0,  # of equals, the first
        "maj@4": 0.5,
    }
    assert found.sampled["pass@4"][1] == found.sampled["maj@4"][1] == 0.5


def test_other_data_is_no_comparison(tmp_path: Path) -> None:
    before = outcomes(tmp_path / "a", [(task("x"), ["yes"])])
    with pytest.raises(UserError, match="share no question"):
        compare([before], [outcomes(tmp_path / "b", [(task("y"), ["yes"])])])
    with pytest.raises(UserError, match="question x is not the same"):
        compare([before], [outcomes(tmp_path / "c", [(task("x", gold="no"), ["yes"])])])


def test_episodes_without_their_answers_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without its accepted answers"):
        outcomes(tmp_path / "a", [(Task("x", "", ()), ["yes"])])


def test_the_newest_step_of_the_named_stage_is_read(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [(task("x"), ["no"])], "train", 9)
    run(folder, [(task("x"), ["yes"])], "train", 10)
    assert read_outcomes(folder, "train").means("em", ["x"]) == [1.0]
    with pytest.raises(UserError, match="no stage dev; there are: train"):
        read_outcomes(folder, "dev")


def test_a_file_of_episodes_is_read_as_its_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [(task("x"), ["yes"])], "train", 9)
    found = read_outcomes(folder / "trajectories" / "train_000009.jsonl.gz")
    assert (found.name, found.stage, found.means("em", ["x"])) == ("a", "train", [1.0])


def test_one_run_is_compared_with_itself_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "a", [(task("x"), ["no"]), (task("y"), ["no"])], "test-before-greedy")
    run(folder, [(task("x"), ["yes"]), (task("y"), ["no"])])
    assert main([str(folder), f"out={tmp_path / 'found.json'}"]) == 0
    assert "1 questions won, 0 lost" in capsys.readouterr().out
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["scores"]["em"]["difference"]["estimate"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one run or two"),
        (["a", "b", "c"], "name one run or two"),
        (["a", "b", "stag=x"], "stag: no such option"),
    ],
)
def test_a_wrong_command_line_says_what_to_write(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_arguments(arguments)


def test_one_run_without_an_earlier_evaluation_needs_another(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [(task("x"), ["no"])])
    with pytest.raises(UserError, match="name a second run"):
        read_arguments([str(folder)])
