"""Data sets become tasks, or one message that lists every fault of the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl.data.load import load_tasks
from verl.data.tasks import Task
from verl.errors import UserError

ROW = {"id": "q1", "question": "who wrote it?", "golden_answers": ["mara ellwood"], "metadata": {"hops": 1}}
VERL_ROW = {
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer this. Question: who wrote it?\n"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["mara ellwood"]}},
    "extra_info": {"split": "train", "index": 7},
}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_jsonl_and_parquet_give_the_same_tasks(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [ROW, {**ROW, "id": 2, "golden_answers": ["a", "b"]}]
    expected = [
        Task("q1", "who wrote it?", ("mara ellwood",), {"hops": 1}),
        Task("2", "who wrote it?", ("a", "b"), {"hops": 1}),
    ]
    assert load_tasks(jsonl(tmp_path / "a.jsonl", rows)) == expected
    assert load_tasks(parquet(tmp_path / "a.parquet", [{**row, "id": str(row["id"])} for row in rows])) == expected
    assert load_tasks(tmp_path / "a.jsonl", limit=1) == expected[:1]


def test_images_are_paths_or_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b", "b.png"):
        (tmp_path / name).touch()
    held = [{"bytes": b"png", "path": None}, {"bytes": None, "path": "b.png"}]
    (task,) = load_tasks(parquet(tmp_path / "a.parquet", [{**ROW, "images": held}]))
    assert task.images == ("data:application/octet-stream;base64,cG5n", str(tmp_path / "b.png"))
    assert "images" not in task.metadata
    one, many = load_tasks(
        jsonl(tmp_path / "a.jsonl", [{**ROW, "images": "a.png"}, {**ROW, "id": "2", "images": ["b"]}])
    )
    assert (one.images, many.images) == ((str(tmp_path / "a.png"),), (str(tmp_path / "b"),))
    with pytest.raises(UserError, match=r"row 1, images: int is neither a path nor the bytes of an image"):
        load_tasks(jsonl(tmp_path / "b.jsonl", [{**ROW, "images": [3]}]))


def test_a_row_shows_no_file_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    folder = tmp_path / "set" / "taught"
    folder.mkdir(parents=True)
    (tmp_path / "set" / "beside.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for reference in (str(tmp_path / "secret.png"), "../../secret.png", "link.png", "none.png", "/etc/hostname", "."):
        with pytest.raises(UserError, match=r"row 1, images: .* is no file below"):
            load_tasks(jsonl(folder / "a.jsonl", [{**ROW, "images": reference}]))
    (task,) = load_tasks(jsonl(folder / "a.jsonl", [{**ROW, "images": ["beside.png", "https://host/a.png"]}]))
    assert task.images == (str(tmp_path / "set" / "beside.png"), "https://host/a.png")


def test_a_row_that_has_only_a_rendered_prompt_is_asked_as_it_stands(tmp_path: Path) -> None:
    (task,) = load_tasks(parquet(tmp_path / "a.parquet", [VERL_ROW]))
    assert (task.id, task.golden_answers) == ("nq/7", ("mara ellwood",))
    assert task.question == task.prompt == VERL_ROW["prompt"][0]["content"]  # type: ignore[index]
    assert "prompt" not in task.metadata


def test_the_rendered_prompt_opens_the_episode_where_that_is_asked_for(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [{**VERL_ROW, "question": "who?", "id": "train_0"}])
    (task,) = load_tasks(file, prompts=True)
    assert (task.question, task.prompt) == ("who?", "Answer this. Question: who wrote it?\n")
    with pytest.raises(UserError, match="row 1, prompt: missing"):
        load_tasks(jsonl(tmp_path / "a.jsonl", [ROW]), prompts=True)
    (task,) = load_tasks(jsonl(tmp_path / "a.jsonl", [{**ROW, "prompt": "Say who."}]), prompts=True)
    assert task.prompt == "Say who."


def test_the_parquet_of_research_is_read(tmp_path: Path) -> None:
    row = {
        "data_source": "musique",
        "question": "who?",
        "ability": "qa",
        "reward_model": {"style": "rule", "ground_truth": ["mara ellwood", "mara"]},
        "extra_info": {"id": "2hop__1_2"},
    }
    (task,) = load_tasks(parquet(tmp_path / "a.parquet", [row]))
    assert (task.id, task.question) == ("musique/2hop__1_2", "who?")
    assert task.golden_answers == ("mara ellwood", "mara")


def test_the_question_column_is_preferred_to_the_rendered_prompt(tmp_path: Path) -> None:
    (task,) = load_tasks(parquet(tmp_path / "a.parquet", [{**VERL_ROW, "question": "who?", "id": "train_0"}]))
    assert (task.id, task.question, task.prompt) == ("nq/train_0", "who?", None)
    assert task.metadata["prompt"] == VERL_ROW["prompt"]


def test_rows_of_two_data_sets_with_one_number_stay_apart(tmp_path: Path) -> None:
    rows = [{**ROW, "id": "train_0", "data_source": source} for source in ("nq", "hotpotqa")]
    assert [task.id for task in load_tasks(jsonl(tmp_path / "a.jsonl", rows))] == ["nq/train_0", "hotpotqa/train_0"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{not json", "row 2: is not JSON"),
        ("[1, 2]", "row 2: is list, not an object"),
        ({**ROW, "id": None}, "row 2, id: missing"),
        ({**ROW, "id": True}, "row 2, id: True is neither"),
        (ROW, "row 2, id: 'q1' stands in row 1 too"),
        ({**ROW, "question": "  "}, "row 2, question: empty"),
        ({**ROW, "question": 5}, "row 2, question: int, not text"),
        ({"id": "x", "query": "a?", "golden_answers": ["a"]}, "row 2, question: missing (the row has id, query"),
        ({**ROW, "golden_answers": []}, "row 2, golden_answers: no answer"),
        ({**ROW, "golden_answers": None}, "row 2, golden_answers: no answer"),
        ({**ROW, "golden_answers": ["a", " "]}, "row 2, golden_answers: holds an answer that is empty"),
        ({**ROW, "golden_answers": {"a": 1}}, "row 2, golden_answers: not a list"),
        ({**ROW, "metadata": [1]}, "row 2, metadata: list"),
        (
            {"id": "x", "question": "a?", "reward_model": {"style": "rule"}},
            "reward_model.ground_truth.target: no answer",
        ),
        ({**VERL_ROW, "prompt": [{"role": "system", "content": "s"}]}, "row 2, prompt: 1 messages; one message of"),
        ({**VERL_ROW, "prompt": [{"role": "system"}, {"role": "user"}]}, "row 2, prompt: 2 messages; one message of"),
    ],
)
def test_a_faulty_row_is_named_with_its_column(tmp_path: Path, bad: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_tasks(jsonl(tmp_path / "bad.jsonl", [ROW, bad]))
    assert "bad.jsonl" in str(error.value)
    assert said in str(error.value)


def test_all_faults_are_counted_and_twenty_are_listed(tmp_path: Path) -> None:
    rows = [{**ROW, "id": str(i), "question": ""} for i in range(30)]
    with pytest.raises(UserError, match="and 10 more, 30 faults in all") as error:
        load_tasks(jsonl(tmp_path / "a.jsonl", rows))
    assert str(error.value).count("question: empty") == 20


def test_blank_lines_are_skipped_and_keep_their_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 3, question: empty"):
        load_tasks(jsonl(tmp_path / "a.jsonl", [ROW, "", {**ROW, "id": "q2", "question": ""}]))


def test_a_file_that_cannot_be_a_data_set_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_tasks(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="must end in"):
        load_tasks(jsonl(tmp_path / "a.csv", [ROW]))
    with pytest.raises(UserError, match="holds no row"):
        load_tasks(jsonl(tmp_path / "empty.jsonl", []))
    broken = tmp_path / "a.parquet"
    broken.write_bytes(b"PAR1 no parquet")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load_tasks(broken)


def test_real_flashrag_files_load_whole() -> None:
    root = os.environ.get("SLEUTH_TEST_DATA")
    if not root:
        pytest.skip("SLEUTH_TEST_DATA does not name a folder with real data sets")
    files = sorted(Path(root, "flashrag").glob("*/*.jsonl"))
    assert len(files) == 9
    assert sum(len(load_tasks(file)) for file in files) == 11_470


@pytest.mark.parametrize("column", ["question", "id", "metadata"])
def test_half_of_a_character_is_a_fault_of_its_row(tmp_path: Path, column: str) -> None:
    half = "where \ud83d?"
    bad = json.dumps({**ROW, column: {"note": [half]} if column == "metadata" else half})
    file = jsonl(tmp_path / "a.jsonl", [ROW, bad])
    with pytest.raises(UserError, match=r"row 2: holds half of a character \('\\ud83d'\)") as caught:
        load_tasks(file)
    str(caught.value).encode()
    (task,) = load_tasks(jsonl(tmp_path / "b.jsonl", [json.dumps({**ROW, "question": "where \U0001f600?"})]))
    assert task.question == "where \U0001f600?"


# As verl's own script for search data writes it.
SEARCH_ROW = {
    "data_source": "searchR1_nq",
    "prompt": [{"role": "system", "content": "You can search."}, {"role": "user", "content": "Answer: who wrote it?"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["mara ellwood"]}},
    "extra_info": {"index": 7, "need_tools_kwargs": True, "question": "who wrote it?", "split": "train"},
}


def test_a_prompt_of_system_and_user_is_read_by_its_question(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", [SEARCH_ROW])
    (task,) = load_tasks(file)
    assert (task.id, task.question, task.prompt) == ("searchR1_nq/7", "who wrote it?", None)
    assert task.golden_answers == ("mara ellwood",)
    with pytest.raises(UserError, match=r"row 1, prompt: 2 messages; one message of the user, or a text, can be used"):
        load_tasks(file, prompts=True)


def test_what_stands_beside_the_answers_is_kept(tmp_path: Path) -> None:
    truths = [{"target": ["a"], "relevant": {"d1": 2, "d2": 1}}, {"target": ["b"], "relevant": {"d3": 1}}]
    rows = [{"id": str(n), "question": "q", "reward_model": {"ground_truth": truth}} for n, truth in enumerate(truths)]
    expected = [{"d1": 2, "d2": 1}, {"d3": 1}]
    assert [task.metadata["relevant"] for task in load_tasks(parquet(tmp_path / "a.parquet", rows))] == expected
    assert [task.metadata["relevant"] for task in load_tasks(jsonl(tmp_path / "a.jsonl", rows))] == expected
