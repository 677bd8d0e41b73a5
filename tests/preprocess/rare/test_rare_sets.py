"""RARE's data sets, read from small files in their published layouts: what is kept, what is dropped and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from preprocess.rare.build import Config, build_set
from tests.verl.tiny_vl import write_picture
from verl.data.load import load_tasks
from verl.data.pictures import open_picture
from verl.data.tasks import Task
from verl.errors import UserError


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def built(root: Path, name: Any, **keys: Any) -> tuple[dict[str, list[Task]], dict[str, Any]]:
    config = Config(set=name, source=str(root / "source"), out=str(root / "out"), dev_rows=1, **keys)
    report = build_set(config, rank=by_shared_words)
    tasks = {part: load_tasks(root / "out" / f"{part}.jsonl", prompts=True) for part in ("train", "dev", "test")}
    assert report["written"] == {part: len(found) for part, found in tasks.items()}
    assert sum(report["read"].values()) == sum(report["written"].values()) + sum(d["rows"] for d in report["dropped"])
    return tasks, report


def by_shared_words(question: str, blocks: Sequence[str]) -> list[int]:
    words = set(question.split())
    return sorted(range(len(blocks)), key=lambda place: -len(words & set(blocks[place].split())))


def reasons(report: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(each["split"], each["reason"]): each["rows"] for each in report["dropped"]}


def test_pubmedqa_takes_its_rows_and_the_three_blocks_nearest_to_the_question(tmp_path: Path) -> None:
    question = "does aspirin help\nA. yes\nB. no\nC. maybe"
    blocks = ["sleep", "aspirin", "does aspirin", "aspirin help does", "rain"]
    for folder in ("all_train", "all_dev", "all_test"):
        root = tmp_path / "source" / f"system=planner_addret,dataset={folder},debug=False"
        (root / "docs").mkdir(parents=True)
        (root / "docs" / "1.txt").write_text("".join(f"## source: {n}\n{text}\n" for n, text in enumerate(blocks)))
        rows = [
            {"id": f"{folder}-{n}", "name": name, "question": question, "gold": gold, "pred": {"doc_path": path}}
            for n, (name, gold, path) in enumerate(
                [
                    ("pubmedqa", "B", f"process\\rare_share\\{root.name}\\docs\\1.txt"),
                    ("pubmedqa", "B", "elsewhere/2.txt"),
                    ("pubmedqa", "?", "docs/1.txt"),
                    ("medqa", "A", "docs/1.txt"),
                ]
            )
        ]
        write(root / "output_all.json", rows)
    tasks, report = built(tmp_path, "pubmedqa")
    assert {part: len(found) for part, found in tasks.items()} == {"train": 1, "dev": 1, "test": 1}
    (task,) = tasks["test"]
    assert task.golden_answers == ("B",)
    prompt = task.prompt or ""
    assert prompt.index("## source: 3") < prompt.index("## source: 2") < prompt.index("## source: 1")
    assert "## source: 0" not in prompt
    assert "rain" not in prompt
    assert reasons(report)["test", "the file of its documents is not there"] == 1
    assert reasons(report)["train", "its label is '?', which is none of the options"] == 2


def test_pubhealth_trains_on_validation_too_and_drops_other_labels(tmp_path: Path) -> None:
    labels = {"train": ["true", "snopes"], "validation": ["mixture"], "test": ["unproven"]}
    for split, of_split in labels.items():
        rows = [
            {"id": f"{split}{n}", "text_1": "Salt heals.", "text_2": "An article.", "label": label}
            for n, label in enumerate(of_split)
        ]
        write(tmp_path / "source" / f"{split}.jsonl", rows)
    tasks, report = built(tmp_path, "pubhealth")
    assert {task.golden_answers for task in tasks["train"] + tasks["dev"]} == {("A",), ("C",)}
    assert tasks["test"][0].golden_answers == ("D",)
    assert reasons(report) == {("train", "its label is 'snopes', which is none of the options"): 1}


def test_casehold_asks_for_one_of_five_holdings(tmp_path: Path) -> None:
    row = {"citing_prompt": "So it is (<HOLDING>).", **{f"holding_{n}": f"holding {n}" for n in range(5)}}
    rows = [{**row, "example_id": n, "label": str(n)} for n in range(6)]
    for split in ("train", "test"):
        write(tmp_path / "source" / f"{split}.jsonl", rows)
    tasks, report = built(tmp_path, "casehold")
    assert [task.golden_answers[0] for task in tasks["test"]] == list("ABCDE")
    assert "E. holding 4" in (tasks["test"][0].prompt or "")
    assert sum(reasons(report).values()) == 2


def test_finfact_is_divided_by_the_published_shuffle(tmp_path: Path) -> None:
    rows = [
        {"claim": f"claim {n}", "label": "true", "evidence": [{"sentence": f"said {n}"}, {"sentence": None}]}
        for n in range(10)
    ]
    write(tmp_path / "source" / "train.json", [*rows, {"claim": "bare", "label": "false", "evidence": []}])
    tasks, report = built(tmp_path, "finfact")
    assert sum(map(len, tasks.values())) == 10
    assert sum(report["read"].values()) == 11
    assert report["read"] == {"train": 8, "test": 3}
    assert {reason for _, reason in reasons(report)} == {"has no document"}


def test_mmrait_brings_its_pictures_and_drops_rows_without(tmp_path: Path) -> None:
    source = tmp_path / "source" / "fact_verify"
    (source / "images").mkdir(parents=True)
    write_picture(source / "images" / "1.jpg", "red")
    (source / "images" / "3.jpg").write_text("root:x:0:0")
    labels = ["Support", "Refute", "Insufficient_Text"]
    rows = [
        {"id": n, "claim": "It rained.", "document": "Rain.", "document_image": "a/images/1.jpg", "category": label}
        for n, label in enumerate(labels)
    ]
    others = [{**rows[0], "id": f"o{n}", "document_image": f"images/{n}.jpg"} for n in (2, 3)]
    write(source / "train_data.jsonl", [*rows, *others])
    write(source / "val_data.jsonl", [{**row, "id": f"v{row['id']}"} for row in rows])
    tasks, report = built(tmp_path, "mmrait")
    assert [task.golden_answers[0] for task in tasks["test"]] == ["A", "B", "C"]
    assert len({task.images for task in tasks["test"]}) == 1, "a picture is copied once"
    assert open_picture(tasks["test"][0].images[0]).size == (80, 60)
    told = {reason.partition(" (")[0] for _, reason in reasons(report)}
    assert told == {"its picture is not there", "is no picture that can be read"}


def test_a_set_of_ones_own_names_its_answer_by_letter_or_in_full(tmp_path: Path) -> None:
    row = {"question": "Is it so?", "documents": "It is.", "options": ["yes", "no"]}
    rows = [{**row, "id": 1, "answer": "no"}, {**row, "id": 2, "answer": "A"}, {**row, "id": 2, "answer": "A"}]
    for split in ("train", "test"):
        write(tmp_path / "source" / f"{split}.jsonl", [{**one, "id": f"{split}{one['id']}"} for one in rows])
    tasks, report = built(tmp_path, "generic")
    assert [task.golden_answers[0] for task in tasks["test"]] == ["B", "A"]
    assert ("test", "its id stands in an earlier row too") in reasons(report)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=r"source: has no train\.jsonl or train\.json"):
        built(tmp_path, "pubhealth")
