"""Plain data becomes frozen dataclasses, or one line a fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.config.build import Plugin, build, to_dict
from verl.errors import UserError


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate={self.learning_rate}: must be above 0; write 1e-6, say")


@dataclass(frozen=True)
class Learner:
    max_tokens_per_microbatch: int
    optimizer: Optimizer = field(default_factory=Optimizer)
    checkpointing: bool = False


@dataclass(frozen=True)
class Run:
    learner: Learner
    reward: Plugin
    name: str = "run"
    folder: Path | None = None
    executor: Literal["uni", "mp"] = "uni"
    files: tuple[str, ...] = ()
    limits: list[int] = field(default_factory=list)
    weights: Mapping[str, float] = field(default_factory=dict)
    memory: int | float | str = 1


PLUGIN = "probe_plugin"


@pytest.fixture(autouse=True)
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{PLUGIN}.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    scale: float = 1.0\n"
        "def build(config, offset): return config.scale + offset\n"
    )
    (tmp_path / "probe_empty.py").write_text("Config = 1\n")
    (tmp_path / "probe_needs.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)


def data(**changes: Any) -> dict[str, Any]:
    return {"learner": {"max_tokens_per_microbatch": 64}, "reward": {"plugin": PLUGIN}, **changes}


def faults(config: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(Run, config)
    return str(caught.value).splitlines()


def test_nested_values_are_built_and_converted() -> None:
    run = build(
        Run,
        data(
            learner={"max_tokens_per_microbatch": 64, "optimizer": {"learning_rate": 1, "betas": [0.9, 1]}},
            folder="runs/a",
            files=["a", "b"],
            limits=[1],
            weights={"em": 1},
            memory="all",
        ),
    )
    assert run.learner.optimizer == Optimizer(learning_rate=1.0, betas=(0.9, 1.0))
    assert isinstance(run.learner.optimizer.learning_rate, float)
    assert (run.folder, run.files, run.limits, run.weights, run.memory) == (
        Path("runs/a"),
        ("a", "b"),
        [1],
        {"em": 1.0},
        "all",
    )


def test_what_was_built_is_written_back_with_every_key() -> None:
    run = build(Run, data(folder="x"))
    plain = to_dict(run)
    assert plain["learner"]["optimizer"] == {"learning_rate": 1e-3, "warmup_steps": 0, "betas": [0.9, 0.95]}
    assert plain["reward"] == {"plugin": PLUGIN, "scale": 1.0}
    assert build(Run, plain) == run


def test_a_plugin_is_built_with_its_config_and_the_context() -> None:
    run = build(Run, data(reward={"plugin": PLUGIN, "scale": 2}))
    assert run.reward.build(offset=0.5) == 2.5


def test_all_faults_are_reported_together_one_line_each() -> None:
    lines = faults(
        data(
            learner={"optimizer": {"learning_rat": 1.0, "warmup_steps": 2.0}},
            executor="mpi",
            nmae="x",
            reward={"plugin": PLUGIN, "scal": 1.0},
        )
    )
    assert [line.split(":")[0] for line in sorted(lines)] == [
        "executor",
        "learner.max_tokens_per_microbatch",
        "learner.optimizer.learning_rat",
        "learner.optimizer.warmup_steps",
        "nmae",
        "reward.scal",
    ]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"nmae": "x"}, ("nmae: no such key", "did you mean name?")),
        ({"zzzz": 1}, ("zzzz: no such key", "known here: executor, files")),
        ({"executor": "un"}, ("executor: 'un' is not allowed", "did you mean uni?", "'uni' or 'mp'")),
        ({"name": 3}, ("name: expected str, got 3 (int)", "quote it")),
        ({"name": None}, ("name: expected str, got null",)),
        ({"learner": None}, ("learner: expected group of keys, got null",)),
        ({"files": "a"}, ("files: expected list of str",)),
        ({"files": [1]}, ("files[0]: expected str",)),
        ({"limits": [True]}, ("limits[0]: expected int, got True (bool)",)),
        ({"weights": [1]}, ("weights: expected group of keys",)),
        ({"weights": {"em": "x"}}, ("weights.em: expected float",)),
        ({"memory": None}, ("memory: expected int or float or str, got null",)),
        ({"reward": {}}, ("reward.plugin: missing",)),
        ({"reward": "em"}, ("reward: expected plug-in",)),
        ({"reward": {"plugin": "probe_plugi"}}, ("reward.plugin: there is no module probe_plugi",)),
        ({"reward": {"plugin": "verl.config.biuld"}}, ("did you mean verl.config.build?",)),
        ({"reward": {"plugin": "probe_empty"}}, ("reward.plugin: probe_empty is not a plug-in", "no build")),
        ({"reward": {"plugin": "probe_needs"}}, ("needs the package surely_not_installed",)),
    ],
)
def test_a_fault_names_key_and_remedy_in_one_line(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    (line,) = faults(data(**changes))
    for part in parts:
        assert part in line


def test_an_integral_float_is_refused_with_the_integer_to_write() -> None:
    (line,) = faults(data(learner={"max_tokens_per_microbatch": 1e6}))
    assert line.endswith("write 1000000")


def test_a_pair_of_the_wrong_length_is_refused() -> None:
    (line,) = faults(data(learner={"max_tokens_per_microbatch": 1, "optimizer": {"betas": [0.9]}}))
    assert "learner.optimizer.betas: expected 2 values, got 1" in line


def test_what_a_dataclass_refuses_gets_its_full_key() -> None:
    (line,) = faults(data(learner={"max_tokens_per_microbatch": 1, "optimizer": {"learning_rate": -1.0}}))
    assert line.startswith("learner.optimizer.learning_rate=-1.0: must be above 0")


@pytest.mark.parametrize("prefix", ["learning_rate", "optimizer.learning_rate", "learner.optimizer.learning_rate"])
def test_a_line_that_already_names_part_of_its_path_gets_the_rest(prefix: str) -> None:
    @dataclass(frozen=True)
    class Strict:
        learning_rate: float

        def __post_init__(self) -> None:
            raise UserError(f"{prefix} is wrong")

    with pytest.raises(UserError) as caught:
        build(Strict, {"learning_rate": 1.0}, "learner.optimizer")
    assert str(caught.value) == "learner.optimizer.learning_rate is wrong"


def test_the_whole_configuration_must_be_a_mapping() -> None:
    assert faults([1])[0].startswith("the configuration: expected group of keys")


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers(), min_size=1))
def test_no_unknown_key_ever_passes(extra: dict[str, int]) -> None:
    unknown = {key: value for key, value in extra.items() if key not in {"learning_rate", "warmup_steps", "betas"}}
    if unknown:
        with pytest.raises(UserError):
            build(Optimizer, unknown)


def test_importing_the_configuration_layer_imports_nothing_heavy() -> None:
    code = (
        "import sys, verl.config.arguments, verl.config.build, verl.config.compose, verl.config.document;"
        "sys.exit(bool({'torch','hydra','omegaconf','ray','vllm','numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
