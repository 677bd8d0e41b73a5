"""Every command of the README and the docs is accepted as it stands, and one that needs two cores alone is run.

A block after ``<!-- gpu -->``, ``<!-- cluster -->`` or ``<!-- network -->`` needs what is named, and one after ``<!--
long -->`` measures for minutes or hours: its commands are checked without being carried out. Any other command is run
by a test: commands over saved episodes here at once, training here by the slow tests (shortened), and what
``RUN_BY`` names by the test beside it. A command of a new kind is no command that anybody ran: it fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest

from bench.__main__ import names, select
from search_agent import train
from search_agent.console.command import load_config, results_config
from search_agent.evaluate import evaluated_config
from search_agent.evaluation import judge
from search_agent.evaluation.choices import chosen
from search_agent.evaluation.judge import split_judge
from search_agent.evaluation.served import split_endpoint
from search_agent.retrieval.config import ServerConfig
from search_agent.retrieval.server.child import start_server
from search_agent.retrieval.server.fleet import parse_fleet
from tests.docs_commands import ROOT, Command, commands
from tests.search_agent.viewer.support import ASHBY, search_episode, write_run
from verl.config.arguments import parse
from verl.config.compose import to_yaml

COMMANDS = commands()
MARKED = frozenset({"gpu", "cluster", "network", "long"})
RUN_BY = {
    "bash cmd/test.sh": "tests/test_docs_commands.py::test_a_command_is_accepted",
    ".venv/bin/pytest": "tests/test_docs_commands.py::test_a_command_is_accepted",
    "bash cmd/train.sh -m": (
        "tests/search_agent/grid/test_grid.py::test_a_grid_ends_with_mean_and_interval_of_each_setting"
    ),
    "bash cmd/train.sh": "tests/test_docs_commands.py::test_a_training_command_trains",
    "bash cmd/eval.sh endpoint=": (
        "tests/search_agent/evaluation/test_served.py::test_the_command_scores_a_served_model_and_goes_on_where_it_was"
    ),
    "bash cmd/eval.sh": "tests/end_to_end/test_run.py::test_evaluating_the_run_plays_its_best_weights",
    "bash cmd/ask.sh": "tests/test_docs_commands.py::test_a_question_is_asked",
    "bash retrieval_launch.sh": "tests/test_docs_commands.py::test_a_corpus_is_served",
    "python -m search_agent.retrieval.index": "tests/test_docs_commands.py::test_an_index_is_built",
    "python -m preprocess.rare.margin": (
        "tests/preprocess/rare/test_margin.py::test_the_margin_is_that_of_the_two_models"
    ),
    "python -m preprocess.rare.knowledge": (
        "tests/preprocess/rare/test_knowledge.py::test_one_command_writes_table_and_picture"
    ),
    "python -m preprocess.download --list": "tests/preprocess/test_download.py::test_the_list_names_every_item",
}
"""What runs a kind of command, by how it begins; the first that fits."""
SAVED = {
    "compare": "search_agent.evaluation.compare",
    "report": "search_agent.evaluation.report",
    "viewer": "search_agent.viewer.__main__",
}
"""Entries over saved episodes, by their scripts; run here."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What placeholders stand for: a finished run ``run``, a question file, a corpus, folders."""
    folder = tmp_path_factory.mktemp("docs")
    rows = [(ASHBY, search_episode(ASHBY, 0, answer="Ashby"))]
    stages = {("test-before-greedy", 0): rows, ("test-after-greedy", 0): rows, ("eval-greedy", 0): rows}
    run = write_run(folder / "run", stages)
    (run / "config.yaml").write_text(to_yaml(results_config(load_config([]))))
    (run / "best_dev").mkdir()
    for name in ("A", "B", "A0", "A1", "A2", "B0", "B1", "B2"):
        shutil.copytree(run, folder / name)
    (folder / "corpus.jsonl").write_text('{"id": "0", "contents": "\\"Title\\"\\ntext"}\n')
    (folder / "file.jsonl").write_text('{"id": "a", "question": "who?", "golden_answers": ["x"]}\n')
    (folder / "folder").mkdir()
    return folder


def filled(words: Sequence[str], place: Path) -> list[str]:
    """The words with something in the place of each placeholder."""
    run, file, corpus = place / "run", place / "file.jsonl", place / "corpus.jsonl"
    values = {
        r"\bruns/([AB]\d?)\b": rf"{place}/\g<1>",
        r"\b(RUN_OR_FOLDER|RUN_[AB]|RUN|BEFORE|AFTER|runs/RUN)(?![\w/])": str(run),
        r"^((data\.)?corpus=).+": rf"\g<1>{corpus}",
        r"^(data\.(train|dev|test|traces)=).+": rf"\g<1>{file}",
        r"\bFOLDER\b": str(place / "folder"),
        r"^out=found\.json$": f"out={place / 'found.json'}",
        r"//(HOST|SEARCH|A|B)\b": "//127.0.0.1",
        r"\bPORT\b|(?<=port=)N\b": "8000",
        r"(?<==)[NM]$": "2",
    }
    for pattern, value in values.items():
        words = [re.sub(pattern, value, word) for word in words]
    return list(words)


def entry(command: Command) -> tuple[str, list[str]]:
    """What is started (``cmd/train.sh``, ``search_agent.viewer``), and its arguments."""
    words = [word for word in command.words if not re.fullmatch(r"[A-Z_]+=\S*", word)] + [""]
    if "-m" in words[:2]:
        return words[2], words[3:-1]
    start = 1 if words[0] in ("bash", "export") else 0
    return words[start], words[start + 1 : -1]


def trains(arguments: Sequence[str], place: Path) -> None:
    known = ["model=embedded" if word == f"model={place / 'folder'}" else word for word in arguments]
    assert train.main([*known, "dry_run=true"]) == 0


def evaluates(arguments: Sequence[str], place: Path) -> None:
    served, others = split_endpoint(split_judge(chosen(arguments))[1])
    model = served.endpoint_model if served else str(place / "run")
    named = any(word.startswith("model=") for word in others)
    assert evaluated_config(others if named else [*others, f"model={model}"]).name


def serves(arguments: Sequence[str], place: Path) -> None:
    given = [word for word in arguments if not word.startswith("backend=...")]
    if any(word.startswith(("replicas=", "shards=")) for word in given):
        parse_fleet(given)
    else:
        local = any(word.startswith(("corpus=", "backend.plugin=")) for word in given)
        parse(ServerConfig, given if local else [f"corpus={place / 'corpus.jsonl'}", *given])


def reads_saved(module: str, arguments: Sequence[str]) -> None:
    command = importlib.import_module(module)
    if "--serve" in arguments:
        command.read_arguments(arguments)
    else:
        assert command.main(arguments) == 0


def accepted(command: Command, place: Path) -> None:
    """Everything of a command but its work."""
    what, given = entry(command)
    arguments = filled(given, place)
    script = what.removeprefix("cmd/").removesuffix(".sh")
    is_module = re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", what) and not what.endswith(".sh")
    if "--help" in arguments:
        said = subprocess.run(["bash", what, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert said.stdout.startswith(f"bash {what}")
    elif what == "cmd/train.sh":
        trains(arguments, place)
    elif what == "cmd/eval.sh":
        evaluates(arguments, place)
    elif what == "cmd/ask.sh":
        evaluates(arguments[:-1], place)
    elif what == "retrieval_launch.sh":
        serves(arguments, place)
    elif what in ("cmd/bench.sh", "cmd/results.sh"):
        assert select([word for word in arguments if "=" not in word], names())
    elif what.startswith("cmd/") and script in SAVED:
        reads_saved(SAVED[script], arguments)
    elif what == judge.__name__:
        assert judge.read_arguments(arguments)
    elif what.startswith(("search_agent.evaluation", "search_agent.viewer")):
        reads_saved(SAVED.get(what.rpartition(".")[2], what), arguments)
    elif what.endswith(".sh"):
        assert (ROOT / what).is_file()
    elif what.startswith("."):
        assert all((ROOT / word).exists() for word in arguments if "/" in word)
    elif command.text.startswith("export"):
        assert "=" in command.text
    else:
        assert "network" in command.marks or (is_module and importlib.util.find_spec(what)), f"nobody knows {what}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.page}: {one.text}"[:90])
def test_a_command_is_accepted(command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted(command, place)


def is_run_by(command: Command) -> str | None:
    """The test that runs it."""
    text = re.sub(r"^(\.venv/bin/)?python", "python", command.text)
    what, _ = entry(command)
    if what in SAVED.values() or what.startswith(("search_agent.evaluation.", "search_agent.viewer")):
        return RUN_BY["bash cmd/test.sh"]
    if what.removeprefix("cmd/").removesuffix(".sh") in SAVED or "--help" in text or "dry_run=true" in text:
        return RUN_BY["bash cmd/test.sh"]
    return next((test for begin, test in RUN_BY.items() if text.startswith(begin)), None)


def test_every_command_is_run_by_a_test_or_says_what_it_needs() -> None:
    unknown = [f"{one.page}: {one.text}" for one in COMMANDS if not one.marks & MARKED and is_run_by(one) is None]
    assert unknown == [], "mark the block (see tests/docs_commands.py), or name the test that runs it in RUN_BY"


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_a_test_that_runs_a_command_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


TRAINING = sorted(
    {
        one.text.removeprefix("bash cmd/train.sh").strip()
        for one in COMMANDS
        if is_run_by(one) == RUN_BY["bash cmd/train.sh"] and not one.marks & MARKED
    }
)
SHORT = (
    "warmup.steps=4", "trainer.save_every_steps=1", "trainer.prompts_per_step=4", "evaluation.every_steps=1",
    "evaluation.dev_tasks=2", "evaluation.test_tasks=4", "environment.max_tokens_per_turn=24", "deterministic=false",
)  # fmt: skip


def command_line(module: str, words: Sequence[str], cwd: Path = ROOT) -> str:
    """What ``python -m module`` prints; fails unless it ends well."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(500)
@pytest.mark.parametrize("arguments", TRAINING)
def test_a_training_command_trains(arguments: str, tmp_path: Path, world: Path) -> None:
    words = Command("", arguments, frozenset()).words
    steps = "0" if "trainer.steps=0" in words else "1"
    files = {name: f"data.{name}={world / f'{name}.jsonl'}" for name in ("train", "test", "traces", "corpus")}
    files["dev"] = f"data.dev={world / 'dev' / 'dev.jsonl'}"
    files["model"] = f"model={world / 'model'}"
    if "warmup.loss.name=kto" in words:
        files["traces"] = f"data.traces={labelled(world / 'traces.jsonl', tmp_path / 'labelled.jsonl')}"
    given = [next((new for new in files.values() if word.split("=")[0] == new.split("=")[0]), word) for word in words]
    short = [word for word in SHORT if not (word.startswith("warmup") and "warmup.steps=0" in words)]
    command_line("search_agent.train", [*given, *short, f"trainer.steps={steps}", f"run_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "summary.json").exists()


def labelled(traces: Path, out: Path) -> Path:
    """The traces, every second one undesirable."""
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    out.write_text("".join(json.dumps({**row, "label": number % 2 == 0}) + "\n" for number, row in enumerate(rows)))
    return out


@pytest.fixture(scope="module")
def world() -> Path:
    """The embedded world's folder."""
    from preprocess.embedded.source import Config, build

    source = build(Config(), out=ROOT / "data", seed=0)
    assert source.traces is not None
    return Path(source.traces).parent


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(500)
def test_a_question_is_asked(world: Path) -> None:
    said = command_line("search_agent.ask", [f"model={world / 'model'}", "who wrote crimson harbor ?"])
    assert "who wrote crimson harbor ?" in said


def test_an_index_is_built(place: Path, tmp_path: Path) -> None:
    said = command_line("search_agent.retrieval.index", [f"corpus={place / 'corpus.jsonl'}", f"index={tmp_path / 'i'}"])
    assert "1 passages" in said


def test_a_corpus_is_served(place: Path, tmp_path: Path) -> None:
    with start_server(place / "corpus.jsonl", log=tmp_path / "log") as server:
        assert urlopen(f"{server.url}/health", timeout=10).status == 200
