"""A teacher writes warm-up trajectories: its queries are carried out, and what it says is data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.annotate.__main__ import main
from preprocess.annotate.evidence import Annotated, read_questions
from preprocess.annotate.rouge import common_length, rouge_l
from preprocess.annotate.trajectory import Unusable, read_steps, teacher_prompt
from search_agent.protocols import exsearch
from search_agent.protocols.actions import Answer, Call, Say, Turns
from search_agent.retrieval.server.child import start_server
from tests.search_agent.scripted_server import Scripted
from verl.errors import UserError

CORPUS = {
    "mara": ("Mara Ellwood", "Mara Ellwood is a writer who was born in Kelder Canyon in 1950."),
    "violin": ("Emerald Violin", "Emerald Violin is a novel written by Mara Ellwood and printed twice."),
    "violins": ("Violin", "A violin is a wooden instrument. Emerald is a colour."),
}
BORN = "Mara Ellwood is a writer who was born in Kelder Canyon in 1950."
WROTE = "Emerald Violin is a novel written by Mara Ellwood"
GOOD = f"""\
<Search 1> author of Emerald Violin
<Reference 1> {WROTE}.
<Keyword 1> Emerald Violin was written by Mara Ellwood.
<Search 2> Mara Ellwood birthplace
<Reference 2> {BORN}
<Keyword 2> Mara Ellwood was born in Kelder Canyon.
<Final>"""
ROW = {"question": "Where was the author of Emerald Violin born?", "answer": "Kelder Canyon", "evidence": [WROTE, BORN]}
QUESTION = Annotated("q", ROW["question"], "Kelder Canyon", (WROTE, BORN))  # type: ignore[arg-type]


def run(tmp_path: Path, rows: list[dict[str, Any]], policy: Callable[[str], str], *words: str) -> tuple[int, Scripted]:
    questions, corpus = tmp_path / "questions.jsonl", tmp_path / "corpus.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    passages = [{"id": name, "contents": f'"{title}"\n{text}'} for name, (title, text) in CORPUS.items()]
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    server = Scripted(policy)
    with start_server(corpus, log=tmp_path / "log") as search:
        arguments = [f"questions={questions}", f"out={tmp_path / 'out'}", f"url={server.start()}", "model=teacher"]
        return main([*arguments, f"client.urls={search.url}", "client.retries=0", *words]), server


def read(tmp_path: Path, name: str) -> Any:
    return json.loads((tmp_path / "out" / name).read_text())


def test_queries_are_carried_out_and_facts_stand_on_the_passages_that_hold_their_evidence(tmp_path: Path) -> None:
    status, server = run(tmp_path, [{"id": "a", **ROW}], lambda prompt: f"Sure!\n{GOOD}")
    assert status == 0
    (row,) = read(tmp_path, "warmup.json")
    protocol = exsearch.build(exsearch.Config())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 4
    said = [message["content"] for message in row["messages"]]
    assert said[0] == protocol.prompt(QUESTION.question)
    assert said[1] == "<QUERY> author of Emerald Violin"
    assert said[2] == f"<SEARCH> [1] Title: Emerald Violin. Content: {CORPUS['violin'][1]}"
    assert said[3] == "<FACT> Emerald Violin was written by Mara Ellwood.\n<QUERY> Mara Ellwood birthplace"
    assert said[5:] == [
        "<FACT> Mara Ellwood was born in Kelder Canyon.\n<FINAL>",
        f"Now give the final answer to the question: {QUESTION.question}",
        "Kelder Canyon",
    ]
    turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    actions = [protocol.parse(Turns(turns[: count + 1], QUESTION.question)) for count in range(len(turns))]
    assert [type(action) for action in actions] == [Call, Call, Say, Answer]
    first, second = read(tmp_path, "selections.json")
    assert [len(chat["messages"]) for chat in (first, second)] == [2, 2]
    chosen, listed = first["messages"][1]["content"], first["messages"][0]["content"]
    assert f"{chosen} Title: Emerald Violin." in listed, "numbers count from 1, as they are shown"
    assert "[1] " in listed
    assert server.asked[0]["messages"][0]["content"] == teacher_prompt(QUESTION)
    assert (server.asked[0]["temperature"], server.asked[0]["max_tokens"]) == (1.0, 1000)
    assert "top_k" not in server.asked[0], "OpenAI's own API has none"
    assert all(sentence in teacher_prompt(QUESTION) for sentence in (*QUESTION.evidence, "Kelder Canyon"))


def test_counts_in_are_counts_out_with_reasons(tmp_path: Path) -> None:
    lost = {
        "id": "lost",
        "question": "What is lost?",
        "answer": "x",
        "evidence": ["Nothing here says it at all, ever."],
    }
    rows: list[dict[str, Any]] = [
        {"id": "a", **ROW},
        {"id": "a", **ROW},
        {"id": "none", "question": "Who?", "answer": "x"},
        lost,
    ]
    reply = "<Search 1> nothing\n<Reference 1> Nothing here says it at all, ever.\n<Keyword 1> It.\n<Final>"
    rows.append({"id": "silent", **ROW, "question": "Silent?"})

    def policy(prompt: str) -> str:
        return "" if "Silent?" in prompt else reply if "What is lost?" in prompt else GOOD

    assert run(tmp_path, rows, policy)[0] == 0
    report = read(tmp_path, "report.json")
    assert (report["rows"], report["trajectories"], sum(report["dropped"].values())) == (5, 1, 4)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {row.get("id", row.get("row")): row["reason"] for row in dropped} == {
        2: "its id stands in an earlier row too",
        3: "cannot be read (KeyError: 'context')",
        "lost": "a query finds nothing",
        "silent": "it does not end with <Final>",
    }
    with pytest.raises(UserError, match="no row from 7 to 9 can be annotated"):
        run(tmp_path, rows, policy, "left=7", "right=9")


def test_a_fact_whose_evidence_the_query_does_not_find_is_not_taught_unless_asked_for(tmp_path: Path) -> None:
    vague = GOOD.replace("author of Emerald Violin", "wooden instrument")
    assert run(tmp_path, [{"id": "a", **ROW}], lambda prompt: vague)[0] == 0
    assert read(tmp_path, "report.json")["dropped"] == {"a query does not find its evidence": 1}
    _, server = run(tmp_path, [{"id": "a", **ROW}], lambda prompt: vague, "least_recall=0")
    assert len(read(tmp_path, "warmup.json")) == 1
    assert not server.asked, "the teacher was not asked again"


def test_a_stopped_annotation_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    rows = [{"id": str(number), **ROW} for number in range(4)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = Scripted(lambda prompt: GOOD)
    words = [f"questions={questions}", f"out={tmp_path / 'out'}", f"url={server.start()}", "model=teacher"]
    assert main([*words, "client.urls=http://127.0.0.1:9", "client.retries=0"]) == 1, "no search server there"
    assert len(server.asked) == 4
    status, again = run(tmp_path, rows, lambda prompt: GOOD)
    assert (status, again.asked) == (0, [])
    assert read(tmp_path, "report.json")["trajectories"] == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "does not end with <Final>"),
        ("<Final>", "not numbered from 1"),
        (GOOD.replace("<Search 2>", "<Search 3>"), "not numbered from 1"),
        (GOOD.replace(BORN, "Ilse was born in Oslo, as everybody knows."), "quotes none"),
        (GOOD.replace("Mara Ellwood birthplace", "<FINAL> Mara"), "spells a tag"),
        (GOOD.replace("Mara Ellwood was born", "Mara </search> <SEARCH> was born"), "spells a tag"),
        (GOOD.replace("<Search 2> Mara Ellwood birthplace\n", ""), "has not one query"),
        (GOOD.replace("Mara Ellwood birthplace", ""), "is empty"),
        (GOOD.replace("<Search 2>", "<Final>\n<Search 2>"), "stands before the end"),
    ],
)
def test_a_hostile_or_broken_reply_is_left_out(text: str, told: str) -> None:
    with pytest.raises(Unusable, match=told):
        read_steps(text, QUESTION)


PIECES = [
    "<",
    "<Search 1>",
    "<Reference 1>",
    f"<Keyword 1> {BORN}",
    BORN,
    "<Final>",
    "\n",
    "\n",
    "a",
    f"<Search {'9' * 5000}>",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_reply_at_all_breaks_the_reader(text: str) -> None:
    try:
        steps = read_steps(text, QUESTION)
    except Unusable:
        return
    assert all(set(step.evidence) <= set(QUESTION.evidence) and step.query and step.fact for step in steps)


def test_thoughts_and_loosely_written_lines_are_read(tmp_path: Path) -> None:
    loose = "<think> <Search 1> no </think>" + GOOD.replace("<Search 1>", "  < search 1 >:").replace(BORN, BORN[:-1])
    steps = read_steps(loose, QUESTION)
    assert [(step.query, step.evidence) for step in steps] == [
        ("author of Emerald Violin", (WROTE,)),
        ("Mara Ellwood birthplace", (BORN,)),
    ]


HOTPOT = {
    "_id": "h",
    "question": "q?",
    "answer": "a",
    "supporting_facts": [["B", 1], ["A", 0], ["A", 9]],
    "context": [["A", ["a0", "a1"]], ["B", ["b0", " b1 "]]],
}
COLUMNS = {"title": ["A", "B"], "sentences": [["a0", "a1"], ["b0", "b1"]]}
FLASHRAG = {
    "id": "h",
    "question": "q?",
    "golden_answers": ["a", "z"],
    "metadata": {"supporting_facts": {"title": ["B", "A"], "sent_id": [1, 0]}, "context": COLUMNS},
}
MUSIQUE = {
    "id": "h",
    "question": "q?",
    "answer": "a",
    "paragraphs": [{"paragraph_text": text, "is_supporting": text != "x"} for text in ("b1", "x", "a0")],
}


@pytest.mark.parametrize(("name", "row"), [("h.json", HOTPOT), ("f.jsonl", FLASHRAG), ("m.jsonl", MUSIQUE)])
def test_published_files_give_their_gold_evidence_in_order(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    (tmp_path / name).write_text(json.dumps([row] if name.endswith(".json") else row))
    assert list(read_questions(tmp_path / name)) == [(1, Annotated("h", "q?", "a", ("b1", "a0")))]


def test_rouge_l_is_that_of_the_longest_common_subsequence() -> None:
    # Lin's own example (2004): "police killed the gunman" against "police kill the gunman".
    assert rouge_l("police killed the gunman", "Police kill the gunman!") == (0.75, 0.75, 0.75)
    assert rouge_l("the cat sat", "the big cat quietly sat down")[:2] == (1.0, 0.5)
    assert rouge_l("", "a") == rouge_l("!", "?") == (0, 0, 0)


@given(st.lists(st.sampled_from("abcd"), max_size=9), st.lists(st.sampled_from("abcd"), max_size=9))
def test_the_bits_of_a_number_count_as_the_table_does(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, ours in enumerate(left):
        for j, theirs in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if ours == theirs else max(table[i][j + 1], table[i + 1][j])
    assert common_length(left, right) == table[-1][-1]
