"""Every row is a passage or a named fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.retrieval.index.corpus import Faults, Passage, parse_row, read_passages
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.types import split_contents
from verl.errors import UserError


def read(path: Path) -> list[Passage]:
    faults = Faults(path)
    passages = read_passages(path, faults)
    faults.raise_if_any()
    return passages


def test_reads_both_row_forms_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "contents": "\\"T\\"\\nbody"}\n\n{"id": 7, "title": "U", "text": "more"}\n')
    assert read(path) == [Passage("a", '"T"\nbody'), Passage("7", '"U"\nmore')]


def test_all_faulty_lines_are_listed_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = ['{"id": "1", "contents": "x"}', "{", "", '{"contents": "x"}', "[1]", '{"id": "1", "text": "y"}']
    path.write_text("\n".join([*lines, '{"id": "2", "contents": " "}', '{"id": "3", "contents": 5}']))
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message.replace("\\n", "")
    assert "6 faulty" in message
    for part in (
        "2 (not JSON",
        "4 (no id)",
        "5 (list",
        "6 (id '1' for the second",
        "7 (contents is empty)",
        "8 (contents",
    ):
        assert part in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl.*No such file"):
        read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    "row", [None, "x", {"id": True, "text": "x"}, {"id": "", "text": "x"}, {"id": "1", "text": None}]
)
def test_rows_that_are_no_passages_are_refused(row: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_row(row)


@given(
    title=st.text(st.characters(codec="utf-8", exclude_characters="\n\r")), text=st.text(st.characters(codec="utf-8"))
)
def test_title_and_text_survive_the_contents_form(title: str, text: str) -> None:
    passage = parse_row({"id": "1", "title": title, "text": text + "x"})
    assert split_contents(passage.contents) == (title, text + "x")


def test_contents_without_a_title_line_are_all_text() -> None:
    assert split_contents("just text") == ("", "just text")
    assert split_contents("Unquoted\ntext") == ("Unquoted", "text")


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")))))
def test_documents_give_back_what_was_put_in(rows: list[tuple[str, str]]) -> None:
    documents = Documents.from_rows(Passage(*row).to_json() for row in rows)
    assert [documents.parsed(i) for i in range(len(documents))] == [{"id": i, "contents": c} for i, c in rows]
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            documents.raw(outside)
