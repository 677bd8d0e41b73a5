"""Traces that would teach something else than the run asks for are refused before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search_agent.protocols import autorefine, research, search_r1
from search_agent.traces import load_traces
from verl.errors import UserError
from verl.trajectory import Trajectory

SEARCH_R1 = search_r1.build(search_r1.Config(instruction="short"))
AUTOREFINE = autorefine.build(autorefine.Config(instruction="short"))
GOOD = "<think> i know. </think> <answer> mara </answer>"


@pytest.fixture
def model(tmp_path: Path, tokenizer: Any) -> str:
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    sizes = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), 8)
    (folder / "config.json").write_text(json.dumps({**sizes, "vocab_size": len(tokenizer)}))
    return str(folder)


def trace(tokenizer: Any, prompt: str, answer: str = GOOD, shift: int = 0) -> str:
    trajectory = Trajectory("t", 0)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    trajectory.append_prompt([i + shift for i in ids], prompt)
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    trajectory.append_generated(ids, answer, [0.0] * len(ids), [0] * len(ids), "stop")
    trajectory.outcome = "finished"
    return json.dumps(trajectory.to_record())


def write(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def test_traces_of_the_protocol_become_samples(tmp_path: Path, tokenizer: Any, model: str) -> None:
    rows = [trace(tokenizer, SEARCH_R1.prompt(question)) for question in ("who wrote it", "where?")]
    samples = load_traces(write(tmp_path, *rows), SEARCH_R1, model, prompts=False)
    assert [sample.num_policy_tokens for sample in samples] == [len(tokenizer(GOOD)["input_ids"])] * 2
    assert all(sample.advantages.sum() == sample.num_policy_tokens for sample in samples)


def test_prompts_of_another_protocol_are_counted_and_shown(tmp_path: Path, tokenizer: Any, model: str) -> None:
    rows = [trace(tokenizer, protocol.prompt("who?")) for protocol in (SEARCH_R1, AUTOREFINE, AUTOREFINE)]
    path = write(tmp_path, *rows)
    with pytest.raises(
        UserError, match=r"2 of 3 prompts are not worded as protocol=search_r1 .*row 2 begins 'Search, r"
    ):
        load_traces(path, SEARCH_R1, model, prompts=False)
    assert len(load_traces(path, SEARCH_R1, model, prompts=True)) == 3


def test_the_system_message_of_a_chat_template_belongs_to_the_wording(
    tmp_path: Path, tokenizer: Any, model: str
) -> None:
    protocol = research.build(research.Config(template="chat", instruction="short"))
    answer = "<think> i know. </think> <answer> \\boxed{mara} </answer>"
    good = trace(tokenizer, f"system: {protocol.system} user: who? assistant: ", answer)
    assert load_traces(write(tmp_path, good), protocol, model, prompts=False)
    with pytest.raises(UserError, match="1 of 1 prompts"):
        load_traces(write(tmp_path, trace(tokenizer, "user: who?", answer)), protocol, model, prompts=False)


def test_a_file_without_one_trace_in_the_format_is_refused(tmp_path: Path, tokenizer: Any, model: str) -> None:
    rows = [trace(tokenizer, SEARCH_R1.prompt("who?"), text) for text in ("mara", "<answer> mara </answer>")]
    with pytest.raises(UserError, match="none of 2 trajectories is in the format of protocol=search_r1"):
        load_traces(write(tmp_path, *rows), SEARCH_R1, model, prompts=False)


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: Any, model: str) -> None:
    prompt = SEARCH_R1.prompt("who?")
    with pytest.raises(UserError, match=r"the ids of 'Search, then answer.* in the tokenizer of model="):
        load_traces(write(tmp_path, trace(tokenizer, prompt, shift=-1)), SEARCH_R1, model, prompts=False)
    with pytest.raises(UserError, match=r"holds token \d+ and model=.* has \d+"):
        load_traces(write(tmp_path, trace(tokenizer, prompt, shift=5000)), SEARCH_R1, model, prompts=False)


def test_traces_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_traces(tmp_path / "none.jsonl", SEARCH_R1, "", prompts=False)
    with pytest.raises(UserError, match=r"write data\.traces=FILE"):
        load_traces(None, SEARCH_R1, "", prompts=False)
    with pytest.raises(UserError, match="holds no trajectory"):
        load_traces(write(tmp_path), SEARCH_R1, "", prompts=False)


def test_every_row_that_is_no_trajectory_is_named(tmp_path: Path, tokenizer: Any) -> None:
    aborted = json.loads(trace(tokenizer, "q")) | {"outcome": "aborted"}
    path = write(tmp_path, trace(tokenizer, "q"), '{"task_id": "t"}', "not json", "[]", json.dumps(aborted))
    with pytest.raises(UserError) as error:
        load_traces(path, SEARCH_R1, "", prompts=False)
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0].rpartition(" ")[2] for line in lines] == ["2", "3", "4", "5"]
    assert all("not a recorded trajectory" in line for line in lines)
