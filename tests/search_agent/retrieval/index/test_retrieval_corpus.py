"""Every row is a passage or a named fault."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_agent.retrieval.index import corpus
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


ROW = '{"id": "1", "contents": "x"}\n'


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl", "c.gz"])
def test_a_packed_corpus_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(ROW.encode()))
    assert read_passages(path, Faults(path)) == [Passage("1", "x")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot be unpacked: .*fetch it again"):
        read_passages(path, Faults(path))


def test_a_packed_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "psgs.tsv.gz"
    path.write_bytes(gzip.compress(b"id\ttext\ttitle\n1\tx\tt\n"))
    assert read_passages(path, Faults(path)) == [Passage("1", '"t"\nx')]


@pytest.mark.parametrize(("name", "text"), [("c.jsonl", ROW), ("c.tsv", "id\tcontents\n1\tx\n")])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8-sig")
    assert read_passages(path, Faults(path)) == [Passage("1", "x")]


@pytest.mark.parametrize("text", ['[{"id": "1", "contents": "x"}]', '[\n{"id": "1", "contents": "x"}\n]\n'])
def test_an_array_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"c\.json: a JSON array; write one passage a line: jq") as raised:
        read_passages(path, Faults(path))
    assert "\n" not in str(raised.value)


def test_a_long_field_of_a_table_is_read_and_an_open_quote_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.tsv"
    path.write_text(f"id\tcontents\n1\t{'x' * 200_000}\n2\ty\n")
    assert [len(passage.contents) for passage in read_passages(path, Faults(path))] == [200_000, 1]
    monkeypatch.setattr(corpus, "MAX_FIELD_CHARS", 1000)
    path.write_text('id\tcontents\n1\t"open\n' + "2\ty\n" * 1000)
    with pytest.raises(UserError, match=r"c\.tsv: line \d+: field larger than field limit .*is a quote left open\?"):
        read_passages(path, Faults(path))


def test_half_a_surrogate_pair_is_a_fault_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(ROW + '{"id": "2", "contents": "where \\ud83d"}\n')
    faults = Faults(path)
    read_passages(path, faults)
    with pytest.raises(UserError, match=r"1 faulty line\(s\): 2 \(not JSON: .*surrogate"):
        faults.raise_if_any()
