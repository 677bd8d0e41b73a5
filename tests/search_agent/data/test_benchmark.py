"""Published question sets from files in their published formats: every row a task, or a fault with file and row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from search_agent.data.benchmark import LONGBENCH, QUESTIONS, Config, build
from search_agent.data.source import Source
from search_agent.evaluate import evaluated_config
from search_agent.evaluation.choices import chosen
from search_agent.protocols import rare
from search_agent.retrieval.index.corpus import Faults, read_passages
from search_agent.rewards.deepretrieval import relevant
from verl.errors import UserError

ROW = {"id": "test_0", "question": "who", "golden_answers": ["mara"], "metadata": {"hops": 2}}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def source(tmp_path: Path, *sets: str, **keys: Any) -> Source:
    config = Config(sets, root=str(tmp_path / "flashrag"), longbench=str(tmp_path / "longbench"), **keys)
    return build(config, out=tmp_path, seed=0)


def longbench_row(number: int) -> dict[str, Any]:
    return {
        "_id": f"a{number}", "input": "who", "context": "mara did", "answers": ["mara", "m"], "length": 2,
        "dataset": "hotpotqa", "language": "en", "all_classes": None,
    }  # fmt: skip


def test_seven_named_sets_are_one_test_set_that_tells_them_apart(tmp_path: Path) -> None:
    for name in QUESTIONS:
        write(tmp_path / "flashrag" / name / ("dev.jsonl" if name == "musique" else "test.jsonl"), [ROW])
        write(tmp_path / "flashrag" / name / "train.jsonl", [{**ROW, "id": "train_0"}])
    tasks = source(tmp_path, "questions").test.load()
    assert [task.id for task in tasks] == [f"{name}/test_0" for name in QUESTIONS]
    assert [task.metadata["data_source"] for task in tasks] == list(QUESTIONS)
    assert tasks[0].metadata["hops"] == 2
    [trained] = source(tmp_path, "nq", split="train").test.load()
    assert trained.id == "nq/train_0"


def test_the_eight_sets_of_longbench_keep_their_context_out_of_the_question(tmp_path: Path) -> None:
    for name in LONGBENCH:
        rows = [longbench_row(number) for number in range(3)]
        write(tmp_path / "longbench" / f"{name.removeprefix('longbench_')}.jsonl", rows)
    tasks = source(tmp_path, "longbench").test.load()
    assert (len(LONGBENCH), len(tasks)) == (8, 24)
    assert tasks[0].id == "longbench_2wikimqa/a0"
    assert (tasks[0].question, tasks[0].golden_answers) == ("who", ("mara", "m"))
    assert tasks[0].metadata["context"] == "mara did"
    assert tasks[0].prompt is None


def test_any_folder_is_read_in_each_form_that_flashrag_reads(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "mine" / "test.json", [ROW])
    assert [task.id for task in source(tmp_path, str(tmp_path / "mine")).test.load()] == ["mine/test_0"]
    (tmp_path / "parts").mkdir()
    for part in range(2):
        rows = pa.Table.from_pylist([{**ROW, "id": f"p{part}"}])
        pq.write_table(rows, tmp_path / "parts" / f"dev-0000{part}-of-00002.parquet")
    assert [task.id for task in source(tmp_path, str(tmp_path / "parts")).test.load()] == ["parts/p0", "parts/p1"]
    write(tmp_path / "alone.jsonl", [ROW])
    assert [task.id for task in source(tmp_path, str(tmp_path / "alone.jsonl")).test.load()] == ["alone/test_0"]


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "train.jsonl", [ROW])
    write(tmp_path / "mine" / "dev.jsonl", [ROW])
    for sets, told in [
        (str(tmp_path / "mine"), r"no split val; it has: dev, train"),
        ("nq", r"nq is not there; run: python -m preprocess\.download --save_path \S+ nq"),
        ("longbench_hotpotqa", r"hotpotqa\.jsonl is not there; unpack LongBench's data\.zip there"),
        ("hotpotq", r"is not there; did you mean hotpotqa\?; there are nq, .*, and any folder"),
    ]:
        with pytest.raises(UserError, match=told):
            source(tmp_path, sets, split="val")
    with pytest.raises(UserError, match="none twice"):
        Config(("nq", "nq"))


def test_places_among_choices_are_letters_and_the_choice_itself_is_right_too(tmp_path: Path) -> None:
    rows = [
        {**ROW, "golden_answers": [1], "choices": ["Lisbon", "Paris"]},
        {**ROW, "id": "test_1", "golden_answers": ["0"], "choices": ["yes", "no"]},
    ]
    write(tmp_path / "mmlu" / "test.jsonl", rows)
    first, second = source(tmp_path, str(tmp_path / "mmlu")).test.load()
    assert first.question == "who\nA. Lisbon\nB. Paris"
    assert first.golden_answers == ("B", "B. Paris", "Paris")
    assert second.golden_answers[0] == "A"
    said = {"<answer>B</answer>": True, "<think> x </think>\n<answer>B. Paris</answer>": True, "Answer: A": False}
    assert {text: rare.is_right(text, first.golden_answers) for text in said} == said


def test_faulty_rows_are_named_by_file_and_row_and_nothing_is_used(tmp_path: Path) -> None:
    rows = [
        ROW,
        "not json",
        {**ROW, "id": "test_1", "golden_answers": []},
        {**ROW, "id": "test_2", "golden_answers": [2], "choices": ["a", "b"]},
        {**ROW, "id": "test_3", "golden_answers": [0], "choices": ["a", ""]},
        {**ROW, "id": "test_4", "golden_answers": [], "choices": ["a"]},
        {**ROW, "id": "test_5", "golden_answers": [True], "choices": ["a", "b"]},
        {**longbench_row(0), "answers": []},
        ROW,
    ]
    file = write(tmp_path / "mine" / "test.jsonl", rows)
    with pytest.raises(UserError) as error:
        source(tmp_path, str(tmp_path / "mine")).test.load()
    first, *faults = str(error.value).splitlines()
    assert first.startswith(f"{file}: cannot be used as a data set")
    assert [fault.split()[1].rstrip(":,") for fault in faults] == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert "2 is no place among its 2 choices, counted from 0" in faults[2]


def beir(tmp_path: Path, judged: Iterable[str]) -> Path:
    folder = tmp_path / "scifact"
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(3)])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}", "metadata": {}} for n in range(3)])
    write(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judged])
    return folder


def test_a_beir_folder_is_its_judged_queries_with_their_grades_and_its_own_corpus(tmp_path: Path) -> None:
    folder = beir(tmp_path, ["q2\td0\t2", "q2\td1\t0", "q0\td2\t1"])
    found = source(tmp_path, str(folder))
    second, first = found.test.load()
    assert (second.id, second.question, second.golden_answers) == ("scifact/q2", "query 2", ("d0",))
    assert relevant(second) == {"d0": 2.0, "d1": 0.0}
    assert relevant(first) == {"d2": 1.0}
    assert found.test.corpus == folder / "corpus.jsonl"
    faults = Faults(folder / "corpus.jsonl")
    assert [passage.id for passage in read_passages(folder / "corpus.jsonl", faults)] == ["d0", "d1", "d2"]
    assert faults.count == 0


def test_judgements_that_say_nothing_are_named_by_row(tmp_path: Path) -> None:
    folder = beir(tmp_path, ["q0\td0\t1", "q1\td0", "q1\td0\tx", "q9\td0\t1", "q2\td0\t0"])
    with pytest.raises(UserError) as error:
        source(tmp_path, str(folder)).test.load()
    first, *faults = str(error.value).splitlines()
    assert first.startswith(f"{folder / 'qrels' / 'test.tsv'}: cannot be used")
    assert [fault.split()[1].rstrip(":,") for fault in faults] == ["3", "4", "5", "6"]
    write(folder / "queries.jsonl", [{"_id": "q0"}])
    with pytest.raises(UserError, match=r"queries\.jsonl, row 1: has no text"):
        source(tmp_path, str(folder)).test.load()


def test_a_benchmark_is_named_on_the_command_line(tmp_path: Path) -> None:
    config = evaluated_config(chosen(["model=embedded", f"benchmark=nq, {tmp_path}/a b", "data.root=elsewhere"]))
    assert config.data.module == "search_agent.data.benchmark"
    assert config.data.config == Config(("nq", f"{tmp_path}/a b"), root="elsewhere")
    with pytest.raises(UserError, match="leave data=files out"):
        chosen(["benchmark=nq", "data=files"])
