"""Mistakes and outages end as one message, the last thing on screen."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from search_agent import train
from search_agent.console.command import load_config, results_config, run_command
from verl.errors import InfrastructureError, UserError


def raising(error: BaseException) -> Callable[[Sequence[str]], int]:
    def main(arguments: Sequence[str]) -> int:
        print("half a line of progress", flush=True)
        raise error

    return main


def last_line(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = run_command(raising(error), [])
    return status, capsys.readouterr().err.splitlines()[-1]


def test_a_mistake_is_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(UserError("seed: no such key"), capsys) == (2, "error: seed: no such key")


def test_an_outage_has_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(InfrastructureError("a worker died (log: a.log)"), capsys) == (
        3,
        "error: a worker died (log: a.log)",
    )


def test_the_first_known_cause_is_found_in_groups_of_errors(capsys: pytest.CaptureFixture[str]) -> None:
    inner = BaseExceptionGroup("tasks", [KeyError("consequence"), UserError("the cause")])
    outer = BaseExceptionGroup("shutdown", [ValueError("x"), inner])
    assert last_line(outer, capsys) == (2, "error: the cause")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_may_not_be_written_is_named(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = last_line(ExceptionGroup("tasks", [OSError(number, os.strerror(number), "data/world")]), capsys)
    assert (status, line) == (
        2,
        f"error: data/world: {os.strerror(number)}; run_dir= and the keys of data= name other places",
    )
    with pytest.raises(OSError, match="Bad file"):
        run_command(raising(OSError(errno.EBADF, os.strerror(errno.EBADF), "x")), [])


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(KeyboardInterrupt(), capsys) == (130, "stopped; run the same command to go on")


EM = ("trainer.advantage.name=softmax", "trainer.loss.name=weighted_nll", "trainer.drop_uniform_groups=false")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.samples_per_prompt=1"], "trainer.samples_per_prompt=1: grpo compares the samples of a task"),
        (["trainer.advantage={name: pass_at_k, k: 9}"], "trainer.advantage.k=9: write at most samples_per_prompt=8"),
        (["trainer.loss.guard.coefficient=0.2"], "trainer.loss.guard.coefficient=0.2: the guard acts from the second"),
        (["deterministic=true", "trainer.max_staleness=1"], "deterministic=true needs trainer.max_staleness=0"),
        (["rollout.engine.max_context_tokens=9000"], "rollout.engine.max_context_tokens is 9000, above learner."),
        (["trainer.max_staleness=1", "rollout.top_p=0.9"], "trainer.max_staleness=1 with rollout.top_p=0.9:"),
        (["trainer.advantage.name=gae"], "trainer.drop_uniform_groups=true: with trainer.advantage.name=gae"),
        (
            ["trainer.advantage.name=reinforce_pp", "trainer.samples_per_prompt=1"],
            "trainer.drop_uniform_groups=true: with trainer.advantage.name=reinforce_pp",
        ),
        (["trainer.advantage.name=softmax"], "trainer.drop_uniform_groups=true: with trainer.advantage.name=softmax"),
        ([*EM, "trainer.kl_reward.coefficient=0.1"], "trainer.kl_reward.coefficient=0.1 says nothing with trainer."),
        ([*EM, "trainer.turn_credit.coefficient=0.5"], "trainer.turn_credit.coefficient=0.5 says nothing with"),
        (
            [*EM, "trainer.max_staleness=1"],
            "trainer.loss compares with what the engine said of its tokens, and with trainer.",
        ),
        (["trainer.advantage.name=gdpo"], "trainer.advantage.parts={}: name parts of the reward"),
        (
            [
                "trainer.advantage.name=remax",
                "trainer.drop_uniform_groups=false",
                "trainer.dynamic_sampling.enabled=true",
            ],
            "trainer.dynamic_sampling.enabled=true: with trainer.advantage.name=remax",
        ),
        (
            ["trainer.advantage.name=gae", "trainer.drop_uniform_groups=false", "trainer.turn_credit.coefficient=0.5"],
            "trainer.turn_credit.coefficient above 0 compares the samples of a task",
        ),
        (["trainer.overlong.buffer_tokens=257"], "trainer.overlong.buffer_tokens=257 is above the 256 tokens"),
        (["warmup.all_weights=true"], "warmup.all_weights=true says something beside learner.lora only"),
        (["client.urls=[http://a:1]", "retriever=http://b:1"], "client.urls says nothing beside retriever"),
        (["protocol=autorefine", "environment.top_k=5"], "environment.top_k=5, and the protocol's prompt promises 3"),
        (["evaluation.select_by=best"], "evaluation.select_by is best: write the name of one of decodings (greedy, "),
        (["evaluation.decodings=[{name: a/b}]", "evaluation.select_by=a/b"], "evaluation.decodings[0].name is 'a/b'"),
        (
            ["evaluation.decodings=[{name: a, temperature: 0, samples: 4}]", "evaluation.select_by=a"],
            "evaluation.decodings[0].samples is 4 with temperature=0",
        ),
        (
            ["evaluation.decodings=[{name: a},{name: a}]", "evaluation.select_by=a"],
            "evaluation.decodings are called a, a",
        ),
        (["seed=-1"], "seed=-1: write 0 to 2**63 - 1"),
        (
            ["trainer.optimizer.learning_rate=nan"],
            "trainer.optimizer.learning_rate: nan is not a value here",
        ),
        (["trainer.stepz=3"], "trainer.stepz: no such key; did you mean trainer.steps?"),
        (["reward=f2"], "reward=f2: no such preset; did you mean f1?"),
    ],
)
def test_an_impossible_combination_is_named_with_its_remedy(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    assert any(line.startswith(told) for line in str(caught.value).splitlines()), str(caught.value)


def test_a_context_may_fill_the_micro_batch_of_all_ranks_that_share_a_sequence() -> None:
    longer = ["rollout.engine.max_context_tokens=16384"]  # the quick start's micro-batch holds 8,192 a rank
    config = load_config([*longer, "learner.sequence_ranks=2", "cluster.learner_ranks=2"])
    assert config.learner.sequence_ranks == 2
    with pytest.raises(UserError, match=r"x learner\.sequence_ranks \(8192\)"):
        load_config(longer)


def test_a_prompt_that_names_no_number_of_passages_goes_with_any() -> None:
    for words in (
        ["protocol=autorefine_short"],
        ["protocol=search_r1"],
        ["protocol=autorefine", "protocol.passages=5"],
    ):
        assert load_config([*words, "environment.top_k=5"]).environment.config.top_k == 5


def test_a_dry_run_prints_every_key_and_what_measuring_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(
        "".join(json.dumps({"id": str(n), "question": "q", "golden_answers": ["a"]}) + "\n" for n in range(7))
    )
    files = ["data=files", "data.train=a", "data.dev=b", f"data.test={test}", "data.corpus=c"]
    assert train.main([*files, "dry_run=true", f"run_dir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out.partition("\nprocesses\n")[0]) == results_config(load_config(files))
    assert "7 tasks x 2 episodes x 2 times = 28 episodes" in " ".join(out.split())
    assert "dev all tasks x 2 episodes x 7 times" in " ".join(out.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["dry_run=true"], ["-m", "dry_run=true", "seed=1,2"]])
def test_a_dry_run_refuses_what_a_run_would_and_tells_what_only_this_machine_lacks(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(train.main, [*words, "retriever=localhost:8000"]) != 0
    assert "'localhost:8000' is no address; write http://HOST:PORT" in "".join(capsys.readouterr())
    assert run_command(train.main, [*words, "recipe=autorefine_qwen2.5_3b", "rollout.workers=400"]) != 0, "no placement"
    capsys.readouterr()
    assert run_command(train.main, [*words, "recipe=search_r1_qwen2.5_32b_grpo", "cluster.address=local"]) == 0
    assert "this machine: the run takes 32 GPUs and this machine has" in capsys.readouterr().out


def test_the_two_sides_round_their_logits_alike() -> None:
    both = ["learner.head_dtype=float32", "rollout.engine.head_dtype=float32"]
    assert load_config(both).rollout.engine.head_dtype == "float32"
    for word in both:
        with pytest.raises(UserError, match="write the same in both"):
            load_config([word])
