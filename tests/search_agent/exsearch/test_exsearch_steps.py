"""The published steps: their arguments as keys of a run, and the files that one step makes for the next."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from search_agent.data.chat_traces import ChatReader
from search_agent.exsearch import files
from search_agent.exsearch.__main__ import main, weights_of, with_recipe
from search_agent.exsearch.arguments import read_arguments, training_keys
from search_agent.exsearch.chats import gold_samples, messages_of
from search_agent.protocols import exsearch
from search_agent.protocols.framing import make_framing
from tests.search_agent.test_environment import TASK, Shelf, play
from verl.errors import UserError

PROTOCOL = exsearch.build(exsearch.Config(instruction="short"))
CHAT = [
    {"role": "user", "content": PROTOCOL.prompt("who?")},
    {"role": "assistant", "content": "<QUERY> who"},
    {"role": "user", "content": "<SEARCH> [1] mara"},
    {"role": "assistant", "content": "<FACT> mara\n<FINAL>"},
    {"role": "user", "content": "Answer: who?"},
    {"role": "assistant", "content": "ilse"},
]


def row(query_id: str = "q", pred: str = "ilse", **more: Any) -> dict[str, Any]:
    return {"query_id": query_id, "question": "who?", "answer": "mara", "pred": pred, "messages": CHAT, **more}


def test_the_seeds_learning_command_is_a_warm_up_alone_in_batches_of_256() -> None:
    words = "--model_name_or_path M --dataset_name_or_path D.json --output_dir O --stage sft --do_train True "
    words += "--deepspeed ds.json --cutoff_len 8192 --per_device_train_batch_size 2 --gradient_accumulation_steps 16 "
    words += "--learning_rate 2e-6 --num_train_epochs 2.0 --save_steps 110 --bf16 True --warmup_ratio 0.1 seed=3"
    arguments, overrides = read_arguments("sft", words.split())
    assert overrides == ["seed=3"]
    assert training_keys(arguments, rows=2000, ranks=8) == [
        "model=M",
        "run_dir=O",
        "trainer.steps=0",
        "warmup.steps=0",
        "warmup.epochs=2",
        "warmup.sequences_per_step=256",
        "warmup.save_every_steps=110",
        "warmup.optimizer.learning_rate=2e-06",
        "warmup.optimizer.schedule=cosine",
        "warmup.optimizer.warmup_steps=2",  # a tenth of 16 steps, rounded up
    ]


@pytest.mark.parametrize(
    ("procedure", "words", "told"),
    [
        ("train", [], "PROCEDURE=train: write one of sft, align, inference"),
        (
            "formate",
            ["--entropy_file", "e"],
            "PROCEDURE=formate: the following arguments are required: --inference_file",
        ),
        (
            "reward",
            ["--inference_file", "i", "--output_dir", "o", "--metrik", "f1"],
            "unrecognized arguments: --metrik",
        ),
    ],
)
def test_what_a_step_does_not_know_or_lacks_is_said(procedure: str, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_arguments(procedure, words)


def test_a_value_may_hold_an_equals_sign_and_other_words_with_one_go_on_to_the_run() -> None:
    arguments, overrides = read_arguments(
        "reward", ["--inference_file", "a=b.json", "--output_dir=o", "seed=1", "--metric", "em"]
    )
    assert (arguments["inference_file"], arguments["output_dir"], overrides) == ("a=b.json", "o", ["seed=1"])


def test_api_search_names_the_retriever_unless_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_SEARCH", "http://h:8893")
    assert "retriever=http://h:8893" in with_recipe([])
    assert "client.dialect=api_search" in with_recipe([])
    assert with_recipe(["recipe=r", "retriever=x"]) == ["recipe=r", "retriever=x"]


def test_the_folder_that_a_step_wrote_names_the_weights_it_came_to_once_it_is_finished(tmp_path: Path) -> None:
    assert weights_of("hub/name") == "hub/name"
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="a run that is not finished: give its command again first"):
        weights_of(str(tmp_path))
    (tmp_path / "summary.json").write_text("{}")
    assert weights_of(str(tmp_path)) == str(tmp_path / "best_dev")


def test_a_cost_goes_with_its_question_and_the_answer_becomes_the_accepted_one() -> None:
    rows = [row("a"), row("b"), row("a", pred="other"), row("c")]
    costs = [{"query_id": "a", "log_probs": 0.5}, {"query_id": "b", "log_probs": 2}, {"query_id": "a", "log_probs": 1}]
    found = files.joined(rows, costs, size=10)
    assert [item["prob"] for item in found] == [0.5, 2.0, 1.0], "c has no cost, and order is that of the questions"
    assert found[0]["messages"][:-1] == CHAT[:-1]
    assert found[0]["messages"][-1] == {"role": "assistant", "content": "mara"}
    assert len(files.joined(rows, costs, size=2)) == 2


def test_the_chats_in_which_passages_were_chosen_cost_what_their_episode_does() -> None:
    chosen = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": "[2]>[1]"}]
    found = files.joined([row("a", rank=[{"messages": chosen}])], [{"query_id": "a", "log_probs": 0.5}], size=10)
    assert [(item["messages"][-1]["content"], item["prob"]) for item in found] == [("mara", 0.5), ("[2]>[1]", 0.5)]


@pytest.mark.parametrize("cost", [math.nan, -0.1, "0.1", None])
def test_a_cost_that_is_none_is_refused(cost: object) -> None:
    with pytest.raises(UserError, match="question q: log_probs is"):
        files.joined([row()], [{"query_id": "q", "log_probs": cost}], 1)


def test_align_weighs_by_the_cost_and_sft_drops_it_as_published() -> None:
    rows: list[dict[str, Any]] = [
        {"messages": CHAT, "prob": 0.7},
        {"messages": CHAT, "weight": 0.25},
        {"messages": CHAT},
    ]
    assert [item["weight"] for item in files.weighed(rows, use=True)] == [pytest.approx(1.9863, abs=1e-4), 0.25, 1.0]
    assert [item["weight"] for item in files.weighed(rows, use=False)] == [1.0, 1.0, 1.0]


def test_scores_are_percent_over_all_rows_unanswered_ones_included() -> None:
    rows = [row(pred="Mara."), row(pred="mara ellwood"), row(pred="", finished=False)]
    assert files.score(rows) == {"f1": 55.556, "em": 33.333, "acc": 66.667}
    assert files.rewarded(rows, "em")[0]["weight"] == 1
    assert len(files.rewarded(rows, "em")) == 2, "nothing was answered in the third"
    with pytest.raises(UserError, match="--metric rouge: write one of f1, em, acc"):
        files.rewarded(rows, "rouge")


def test_the_steps_on_files_write_by_the_published_names_and_overwrite_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inference, entropy = tmp_path / "i.json", tmp_path / "e.json"
    inference.write_text(json.dumps({"output": [row("a"), row("b")]}))
    entropy.write_text(json.dumps([{"query_id": "a", "log_probs": 0.5}]))
    words = [f"--inference_file={inference}", f"--entropy_file={entropy}", f"--output_dir={tmp_path}", "--epo=2"]
    monkeypatch.setenv("PROCEDURE", "formate")
    assert main([*words, "--is_rank", "True"]) == 0
    assert len(json.loads((tmp_path / "epo2.training.len1.json").read_text())) == 1
    with pytest.raises(UserError, match="is there already"):
        main(words)
    monkeypatch.setenv("PROCEDURE", "reward")
    assert main([f"--inference_file={inference}", f"--output_dir={tmp_path}"]) == 0
    assert [r["weight"] for r in json.loads((tmp_path / "epo1.training.len2.json").read_text())] == [0, 0]


@pytest.mark.parametrize("samples_its_end", [True, False])
def test_an_episode_is_written_as_the_chat_that_reads_back_as_the_same_tokens(
    tokenizer: Any, samples_its_end: bool
) -> None:
    end = "" if samples_its_end else " <SEARCH>"  # a stop string ends the turn, and the template adds the end
    turns = [f"<QUERY> who wrote it{end}", "<FACT> mara wrote it\n<FINAL>", "mara"]
    trajectory, _, _ = play(tokenizer, turns, Shelf(), protocol=PROTOCOL, framing="chat_turns")
    framing = make_framing("chat_turns", tokenizer, system=None, probe=PROTOCOL.prompt("who?"))
    messages = messages_of(trajectory, framing)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert messages[0]["content"] == PROTOCOL.prompt(TASK.question)
    assert messages[1]["content"] == turns[0]
    assert messages[2]["content"].startswith("<SEARCH> [1] Title: a book.")
    assert messages[4]["content"] == f"Answer: {TASK.question}"
    read = ChatReader(tokenizer, None, date(2026, 1, 1)).read({"messages": messages}, "r")
    assert tokenizer.decode(read.token_ids().tolist()) == tokenizer.decode(trajectory.token_ids().tolist())


def test_only_the_accepted_answer_is_scored_after_the_chat(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    (sample,) = gold_samples([row()], tmp_path, date(2026, 1, 1))
    assert tokenizer.decode(sample.token_ids[sample.policy_mask].tolist()) == "mara"
    assert "ilse" not in tokenizer.decode(sample.token_ids.tolist())
    assert not sample.advantages.any()
