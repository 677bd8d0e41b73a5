"""Traces that would teach something else than the run asks for are refused before anything is started."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from search_agent.data import traces
from search_agent.protocols import autorefine, research, search_r1
from verl.algorithms.config import LossConfig
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.trainer.config import WarmupConfig
from verl.trajectory import Trajectory

SEARCH_R1 = search_r1.build(search_r1.Config(instruction="short"))
AUTOREFINE = autorefine.build(autorefine.Config(instruction="short"))
GOOD = "<think> i know. </think> <answer> mara </answer>"


def load_traces(path: Path | None, protocol: Any, model: str, *, prompts: bool, **options: Any) -> list[TrainingSample]:
    options = {"warmup": WarmupConfig(), "longest": 1000, **options}
    return traces.load_traces(path, protocol, model, prompts=prompts, **options)


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
    assert all("cannot be learned from" in line for line in lines)


KTO = WarmupConfig(loss=LossConfig(name="kto"))
CHAT = [
    {"role": "system", "content": "you search"},
    {"role": "user", "content": "who wrote it? <|im_end|>"},
    {"role": "assistant", "content": "<search> the book </search>"},
    {"role": "user", "content": "<result> mara </result>"},
    {"role": "assistant", "content": "<answer> mara </answer>"},
]


def jsonl(tmp_path: Path, *rows: dict[str, Any], name: str = "traces.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def learned(tokenizer: Any, sample: TrainingSample) -> list[str]:
    """The runs of tokens that the loss counts, as texts."""
    runs: list[list[int]] = []
    previous = False
    for token, counts in zip(sample.token_ids.tolist(), sample.policy_mask.tolist(), strict=True):
        if counts and not previous:
            runs.append([])
        if counts:
            runs[-1].append(token)
        previous = counts
    return [tokenizer.decode(run) for run in runs]


def test_of_a_chat_the_assistants_turns_alone_are_learned(tmp_path: Path, tokenizer: Any, model: str) -> None:
    path = jsonl(tmp_path, {"messages": CHAT}, {"messages": CHAT[1:3], "weight": 0.25}, name="chat.json")
    whole, light = load_traces(path, SEARCH_R1, model, prompts=False)
    assert learned(tokenizer, whole) == ["<search> the book </search><|im_end|>", "<answer> mara </answer><|im_end|>"]
    assert set(whole.advantages[whole.policy_mask]) == {1.0}
    assert set(light.advantages[light.policy_mask]) == {0.25}
    harmless = [{**message, "content": message["content"].replace(" <|im_end|>", "")} for message in CHAT]
    (plain,) = load_traces(jsonl(tmp_path, {"messages": harmless}), SEARCH_R1, model, prompts=False)
    rendered = tokenizer.apply_chat_template(harmless, tokenize=False).removesuffix("\n")
    assert plain.token_ids.tolist() == tokenizer(rendered)["input_ids"]
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert whole.token_ids.tolist().count(ends) == len(CHAT)  # the one that the question spells is text


def test_an_instruction_and_what_follows_it_is_a_chat_of_two_turns(tmp_path: Path, tokenizer: Any, model: str) -> None:
    row = {"instruction": "who?", "predict": "<think> ok </think> mara", "output": "<answer>A</answer>", "id": 3}
    (sample,) = load_traces(jsonl(tmp_path, row), SEARCH_R1, model, prompts=False)
    assert learned(tokenizer, sample) == ["<think> ok </think> mara<|im_end|>"]
    (Path(model) / "chat_template.jinja").unlink()
    (bare,) = load_traces(jsonl(tmp_path, row), SEARCH_R1, model, prompts=False)
    assert tokenizer.decode(bare.token_ids.tolist()) == "who?<think> ok </think> mara<|im_end|>"


def test_kto_reads_a_label_or_a_sign(tmp_path: Path, tokenizer: Any, model: str) -> None:
    row = {"instruction": "who?", "predict": "mara"}
    marks: list[dict[str, Any]] = [{"label": True}, {"label": False}, {"weight": 2}, {"weight": -0.5}, {"weight": 0}]
    rows = [{**row, **mark} for mark in marks]
    recorded = [json.loads(trace(tokenizer, SEARCH_R1.prompt("q"))) | {"reward": reward} for reward in (0.3, 0.0)]
    samples = load_traces(jsonl(tmp_path, *rows, *recorded), SEARCH_R1, model, prompts=False, warmup=KTO)
    assert [float(s.advantages[s.policy_mask][0]) for s in samples] == [1, -1, 1, -1, -1, 1, -1]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": "hello"}, "messages: not a list"),
        ({"messages": []}, "messages: not a list"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, r"messages\[0\]: no message with a role"),
        ({"messages": CHAT[:2]}, "no turn of the assistant"),
        ({"messages": CHAT[2:]}, "something must come before"),
        ({"messages": [CHAT[1], {"role": "assistant", "content": None}]}, "content: missing"),
        ({"instruction": "who?"}, "predict: missing"),
        ({"instruction": "who?", "predict": " "}, "predict: no text"),
        ({"instruction": "who?", "predict": "a", "weight": -1}, r"below 0: write warmup\.loss\.name=kto"),
        ({"instruction": "who?", "predict": "a", "weight": "much"}, "weight: 'much'"),
        ({"instruction": "who?", "predict": "a", "weight": [1]}, "TypeError"),
        ({"instruction": "who?", "predict": "a", "label": "good"}, "label: 'good'"),
        ({"instruction": "who?", "predict": "a", "label": False}, "undesirable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_cannot_be_learned_from_is_named(
    row: dict[str, Any], fault: str, tmp_path: Path, model: str
) -> None:
    good = {"instruction": "who?", "predict": "mara"}
    with pytest.raises(UserError, match=f"row 2: cannot be learned from.*{fault}"):
        load_traces(jsonl(tmp_path, good, row), SEARCH_R1, model, prompts=False)


def test_a_label_is_asked_for_and_a_row_too_long_is_named(tmp_path: Path, model: str) -> None:
    path = jsonl(tmp_path, {"instruction": "who?", "predict": "mara " * 200})
    with pytest.raises(UserError, match=r"row 1: .*needs a label, a weight or a reward"):
        load_traces(path, SEARCH_R1, model, prompts=False, warmup=KTO)
    with pytest.raises(UserError, match=r"row 1: \d+ tokens and a micro-batch holds 100"):
        load_traces(path, SEARCH_R1, model, prompts=False, longest=100)


def test_a_smaller_share_of_the_traces_is_part_of_a_larger_one() -> None:
    rows: list[Any] = list(range(40))
    shares = [set(traces.share_of(rows, fraction, seed=1)) for fraction in (0.001, 0.25, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 10, 20, 40]
    assert shares == sorted(shares, key=len)
    assert all(small <= large for small, large in itertools.pairwise(shares))
    assert traces.share_of(rows, 0.5, seed=2) != traces.share_of(rows, 0.5, seed=1)
    for fraction in (0.0, 1.5):
        with pytest.raises(UserError, match="traces_fraction"):
            traces.share_of(rows, fraction, seed=1)
