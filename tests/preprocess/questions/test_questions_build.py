"""Files from published question sets: disjoint, counted, and read back by the loader."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.questions import Config, build_files
from preprocess.questions.__main__ import main
from preprocess.questions.read import Question, files_of
from preprocess.questions.split import divide
from verl.data.load import load_tasks
from verl.data.tasks import Task
from verl.errors import UserError


def row(number: int, question: str, **more: Any) -> dict[str, Any]:
    return {"id": f"row_{number}", "question": question, "golden_answers": [f"answer {number}"], **more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three sets: one with train, dev and test, one tested on dev, one with nothing but test."""
    root = tmp_path / "flashrag"
    splits: dict[str, list[Any]] = {
        "nq/train": [row(i, f"nq train question {i}?") for i in range(40)],
        "nq/dev": [row(i, f"nq dev question {i}?") for i in range(20)],
        "nq/test": [row(0, "nq test question?"), row(1, "NQ  train question 3")],
        "hotpotqa/train": [row(i, f"hotpot train question {i}?") for i in range(30)] + [row(30, "")],
        "hotpotqa/dev": [row(0, "hotpot dev question?"), row(1, "nq dev question 5?")],
        "bamboogle/test": [row(0, "bamboogle question?")],
    }
    for name, rows in splits.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return root


def config(source: Path, **more: Any) -> Config:
    sets = {"train": ("nq", "hotpotqa"), "test": ("nq", "hotpotqa", "bamboogle")}
    return Config(source=str(source), out=str(source.parent / "out"), **{**sets, "valid_per_set": 5, **more})


def read(source: Path, name: str) -> list[Task]:
    return load_tasks(source.parent / "out" / name)


def test_validation_comes_from_untested_splits_and_leaves_training(source: Path) -> None:
    build_files(config(source))
    train, valid, test = (read(source, f"{name}.parquet") for name in ("train", "valid_5", "test"))
    assert [t.id for t in test] == ["nq/row_0", "nq/row_1", "hotpotqa/row_0", "hotpotqa/row_1", "bamboogle/row_0"]
    origins = Counter((t.metadata["data_source"], t.metadata["extra_info"]["split"]) for t in valid)
    assert origins == {("nq", "dev"): 5, ("hotpotqa", "train"): 5}
    questions = [{t.question for t in file} for file in (train, valid, test)]
    assert not questions[0] & questions[1]
    assert "nq train question 3?" not in questions[0]
    assert "nq dev question 5?" not in questions[1]
    assert len(train) == 40 - 1 + 30 - 5


def test_every_row_that_is_read_is_written_or_has_a_reason(source: Path) -> None:
    report = build_files(config(source))
    dropped = [json.loads(line) for line in (source.parent / "out" / "dropped.jsonl").read_text().splitlines()]
    trained = {"nq": 40, "hotpotqa": 31}
    for name, rows in trained.items():
        left_out = [d for d in dropped if (d["set"], d["split"]) == (name, "train")]
        assert report["written"]["train.parquet"][name] + len(left_out) == rows == report["read"][f"{name}/train"]
    reasons = {(d["set"], d["row"]): d["reason"] for d in dropped if d["split"] == "train"}
    assert reasons["nq", 3] == "stands in the test file"
    assert reasons["hotpotqa", 30] == "question: empty"
    assert report["notes"] == ["bamboogle: no validation questions, its only split is the one that is tested on"]


def test_the_published_validation_is_a_part_of_the_test_set(source: Path) -> None:
    report = build_files(config(source, valid_from="test", valid_per_set=1))
    tested = {task.question for task in read(source, "test.parquet")}
    valid = read(source, "valid_1.parquet")
    assert {task.metadata["data_source"] for task in valid} == {"nq", "hotpotqa", "bamboogle"}
    assert {task.question for task in valid} <= tested
    assert report["written"]["train.parquet"] == {"nq": 39, "hotpotqa": 30}


def test_rows_carry_the_published_columns(source: Path) -> None:
    build_files(config(source))
    (first, *_) = pq.read_table(source.parent / "out" / "test.parquet").to_pylist()
    assert first["reward_model"] == {"style": "rule", "ground_truth": {"target": ["answer 0"]}}
    assert (first["data_source"], first["ability"]) == ("nq", "fact-reasoning")
    assert first["extra_info"] == {"split": "test", "index": 0}
    assert first["prompt"][0]["role"] == "user"
    assert "<refine>" in first["prompt"][0]["content"]
    assert first["prompt"][0]["content"].endswith("Question: nq test question?\n")


def test_a_hugging_face_split_in_several_parquet_files_is_one_split(source: Path) -> None:
    folder = source / "nq"
    (folder / "train.jsonl").unlink()
    for part in (0, 1):
        rows = [row(20 * part + i, f"nq train question {20 * part + i}?") for i in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-0000{part}-of-00002.parquet")
    (folder / "training_notes.parquet").write_bytes(b"")
    assert len(files_of(source, "nq", "train")) == 2
    report = build_files(config(source))
    assert report["read"]["nq/train"] == 40
    assert report["written"]["train.parquet"]["nq"] == 39


@pytest.mark.parametrize("valid_from", ["held_out", "test"])
def test_the_first_validation_questions_are_of_all_sets(valid_from: str) -> None:
    """A run that measures ``dev_tasks`` of them chooses its best checkpoint on these."""
    tasks = [Task(f"{i}", f"question {i}?", ("a",)) for i in range(1000)]
    sets = [
        [Question("nq", "dev", i, task) for i, task in enumerate(tasks[:500])],
        [Question("hotpotqa", "dev", i, task) for i, task in enumerate(tasks[500:])],
    ]
    test = sets if valid_from == "test" else []
    files = divide([], sets, test, valid_per_set=500, valid_is_test=valid_from == "test", seed=42)
    first = Counter(question.set for question in files.valid[:100])
    assert 30 < first["nq"] < 70
    assert len(files.valid) == 1000


def test_the_same_seed_writes_the_same_rows(source: Path) -> None:
    build_files(config(source))
    first = [read(source, f"{name}.parquet") for name in ("train", "valid_5")]
    build_files(config(source))
    assert [read(source, f"{name}.parquet") for name in ("train", "valid_5")] == first
    build_files(config(source, seed=1))
    assert [read(source, f"{name}.parquet") for name in ("train", "valid_5")] != first


def test_the_command_says_what_went_in_and_out(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"source={source}", f"out={source.parent / 'out'}", "train=nq,hotpotqa", "test=nq"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "rows in:  nq/train 40" in said
    assert "left out: hotpotqa/train 1 rows: question: empty" in said
    assert main([*arguments, "train=squad"]) == 2
    assert "squad: has no train.jsonl" in capsys.readouterr().err
    assert main(["nq"]) == 2
    assert "nq: write key=value" in capsys.readouterr().err


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="valid_per_set=-1"):
        Config(valid_per_set=-1)
    with pytest.raises(UserError, match="name at least one set, and none twice"):
        Config(train=("nq", "nq"))


@given(st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=3, max_size=3), st.integers(0, 5))
def test_no_question_ever_stands_in_two_files(numbers: list[list[int]], valid_per_set: int) -> None:
    train, valid, test = (
        [Question(name, name, i, Task(str(i), f"Question {n}?", ("a",))) for i, n in enumerate(group)]
        for name, group in zip(("train", "valid", "test"), numbers, strict=True)
    )
    files = divide([train], [valid], [test], valid_per_set=valid_per_set, valid_is_test=False, seed=0)
    keys = [{question.key for question in file} for file in (files.train, files.valid, files.test)]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert len(files.test) == len(test)
    assert len(files.train) + sum(d.set == "train" for d in files.dropped) == len(train)


def test_the_sets_of_exsearch_are_built_beside_kilts_wizard_of_wikipedia(tmp_path: Path) -> None:
    said = "I love horses.\nMe too! Which breeds?\nArabians, mostly."
    pages = [{"wikipedia_id": "2", "title": "Arabian horse"}, {"wikipedia_id": "2", "title": "Arabian horse"}]
    dialogue = {
        "id": "w1",
        "input": said,
        "output": [{"answer": "They are an old breed. ", "provenance": pages}, {"provenance": []}],
        "meta": {},
    }
    for name, split in (("hotpotqa", "train"), ("hotpotqa", "dev"), ("nq", "test"), ("musique", "dev")):
        path = tmp_path / "flashrag" / name / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row(0, f"{name} {split}?", metadata={"type": "bridge"})) + "\n")
    (tmp_path / "flashrag" / "wow").mkdir()
    rows = [dialogue, {"id": "w2", "input": "Hello?", "output": []}]
    (tmp_path / "flashrag" / "wow" / "wow-dev-kilt.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    words = [
        "train=hotpotqa",
        "test=nq,hotpotqa,musique,wow",
        "valid_per_set=0",
        "protocol=search_agent.protocols.exsearch",
    ]
    assert main([*words, f"source={tmp_path / 'flashrag'}", f"out={tmp_path / 'out'}"]) == 0
    *others, wizard = load_tasks(tmp_path / "out" / "test.parquet")
    assert (wizard.id, wizard.question, wizard.golden_answers) == ("wow/w1", said, ("They are an old breed.",))
    assert wizard.metadata["provenance"] == [["Arabian horse"]]
    assert ["provenance" in task.metadata for task in others] == [False] * 3
    (dropped,) = map(json.loads, (tmp_path / "out" / "dropped.jsonl").read_text().splitlines())
    assert (dropped["row"], dropped["set"]) == (1, "wow")
    assert "no answer" in dropped["reason"]
