"""Mistakes and outages end as one message, the last thing on screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from search_agent.command import load_config, run_command
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


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_line(KeyboardInterrupt(), capsys) == (130, "stopped; run the same command to go on")


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
