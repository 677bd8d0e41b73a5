"""Published formats from the command line to a table: a served policy is measured on each kind of set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from search_agent import evaluate
from search_agent.evaluation import compare, flashrag
from tests.search_agent.data.test_benchmark import ROW, beir, longbench_row, write
from tests.search_agent.scripted_server import Policy, Scripted
from verl.errors import UserError


def measure(tmp_path: Path, tokenizer: Any, policy: Policy, *words: str, name: str = "run") -> dict[str, Any]:
    tokenizer.save_pretrained(tmp_path / "model")
    server = Scripted(policy, tokenizer)
    command = [f"endpoint={server.start()}", "endpoint_model=m", f"model={tmp_path / 'model'}"]
    assert evaluate.main([*command, f"run_dir={tmp_path / name}", "environment.max_prompt_tokens=400", *words]) == 0
    found: dict[str, Any] = json.loads((tmp_path / name / "evaluation.json").read_text())["greedy"]
    return found


def test_a_beir_folder_is_scored_by_what_the_written_query_finds(tmp_path: Path, tokenizer: Any) -> None:
    folder = beir(tmp_path, ["q0\td0\t1", "q1\td1\t2", "q1\td2\t1"])
    texts = ("a red harbor", "a blue meadow", "a green lantern")
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)])

    def writes(prompt: str) -> str:
        query = "red" if "query 0" in prompt else "lantern"
        return f' x </think> <answer>{{"query": "{query}"}}</answer>'

    words = ["protocol=deepretrieval_sparse", "environment=query", "reward=deepretrieval_beir"]
    found = measure(tmp_path, tokenizer, writes, f"benchmark={folder}", *words)
    assert (found["n"], found["mrr"], found["recall@10"]) == (2, 1.0, 0.75)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / (2 + 1 / 1.584962500721156)) / 2)


def test_longbench_is_answered_from_its_context_or_open(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "longbench" / "hotpotqa.jsonl", [longbench_row(number) for number in range(2)])
    words = ["benchmark=longbench_hotpotqa", f"data.longbench={tmp_path / 'longbench'}"]

    def reads(prompt: str) -> str:
        return " mara" if "mara did" in prompt else " nobody"

    given = measure(tmp_path, tokenizer, reads, *words, "method=given")
    assert (given["n"], given["em"]) == (2, 1.0)
    assert measure(tmp_path, tokenizer, reads, *words, "method=direct")["em"] == 0.0


def test_multiple_choice_is_scored_by_its_letter(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{**ROW, "id": f"t{n}", "golden_answers": [n], "choices": ["Lisbon", "Paris"]} for n in range(2)]
    write(tmp_path / "mmlu" / "test.jsonl", rows)
    words = [f"benchmark={tmp_path / 'mmlu'}", "retriever=none"]

    def letter(prompt: str) -> str:
        return "<think> x </think> <answer>B</answer>" if "A. Lisbon\nB. Paris" in prompt else "nothing"

    assert (
        measure(tmp_path, tokenizer, letter, *words, "protocol=rare", "environment=reading", "reward=rare")["em"] == 0.5
    )
    assert measure(tmp_path, tokenizer, lambda _: " B. Paris", *words, "method=direct")["em"] == 0.5


def test_several_sets_are_told_apart_with_their_mean_and_written_as_flashrag_writes(
    tmp_path: Path, tokenizer: Any
) -> None:
    for name, answers in {"nq": ["mara", "mara", "mara"], "popqa": ["other"]}.items():
        rows = [{**ROW, "id": f"t{n}", "golden_answers": [gold]} for n, gold in enumerate(answers)]
        write(tmp_path / "sets" / name / "test.jsonl", rows)
    words = ["benchmark=nq,popqa", f"data.root={tmp_path / 'sets'}", "method=direct"]
    found = measure(tmp_path, tokenizer, lambda _: " mara", *words)
    assert (found["em"], found["em/nq"], found["em/popqa"], found["em/mean"]) == (0.75, 1.0, 0.0, 0.5)
    assert flashrag.main([str(tmp_path / "run"), f"out={tmp_path / 'written'}", "stage=eval-greedy"]) == 0
    items = json.loads((tmp_path / "written" / "intermediate_data.json").read_text())
    assert [item["output"]["pred"] for item in items] == ["mara"] * 4
    assert re.match(r"em: 0.75\n", (tmp_path / "written" / "metric_score.txt").read_text())


def test_samples_have_pass_and_majority_and_seeds_an_interval_from_the_command_line(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "mine" / "test.jsonl", [{**ROW, "id": f"t{n}", "question": f"who {n}"} for n in range(2)])
    said = iter([" mara", " other"] * 40)
    words = [f"benchmark={tmp_path / 'mine'}", "method=direct", "evaluation.select_by=four"]
    ways = "evaluation.decodings=[{name: greedy, temperature: 0}, {name: four, samples: 4}]"
    names = ["a", "b"]
    for seed, name in enumerate(names):
        measure(tmp_path, tokenizer, lambda _: next(said), *words, ways, f"seed={seed}", name=name)
    runs = ",".join(str(tmp_path / name) for name in names)
    capsys.readouterr()
    assert compare.main([runs, str(tmp_path / "a"), "stage=eval-four", f"out={tmp_path / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sampled"]["pass@4"] == [1.0, 1.0]
    assert set(found["sampled"]) == {"pass@2", "pass@4", "maj@2", "maj@4"}
    assert found["seeds"]["before"]["n"] == 2
    with pytest.raises(UserError, match="named twice on one side"):
        compare.main([f"{tmp_path / 'a'},{tmp_path}/mine/../a", str(tmp_path / "b")])
