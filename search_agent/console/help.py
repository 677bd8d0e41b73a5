"""``--help`` of the entry points: every preset and every key, from the presets' first lines and the fields' docstrings.

Everything is read as text and nothing is imported, so that help answers before anything is installed.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl.config.absent import absent_packages
from verl.config.compose import CONFIG_DIR
from verl.config.document import help_text

USAGE = {
    "train": """bash cmd/train.sh [key=value ...]

Train a search agent; without arguments, the quick start. The same command resumes a run that was stopped, and prints
the results of one that is finished. -m before the keys runs a grid.

  bash cmd/train.sh dry_run=true                               what a run would start, need and refuse
  bash cmd/train.sh seed=1 trainer.steps=120                   another world and weights, twice as long
  bash cmd/train.sh reward=f1 trainer.advantage.name=rloo      another reward, another estimator
  bash cmd/train.sh -m reward=em,f1 seed=1,2,3                 six runs, one table
  bash cmd/train.sh recipe=autorefine_qwen2.5_3b dry_run=true  the plan of a published recipe""",
    "eval": """bash cmd/eval.sh [model=RUN or HUGGING_FACE_FOLDER] [key=value ...]

Score a model on the test questions, greedily and sampled; without arguments, the best checkpoint of the newest run.

  bash cmd/eval.sh model=runs/RUN                              under the run's own configuration
  bash cmd/eval.sh model=runs/RUN evaluation.test_tasks=100    the first 100 questions
  bash cmd/eval.sh model=runs/RUN method=ircot                 the same model by direct, rag, ircot, iterretgen or given
  bash cmd/eval.sh model=runs/RUN benchmark=nq,hotpotqa        published sets, or a folder as FlashRAG or BEIR have it
  bash cmd/eval.sh model=runs/RUN judge.endpoint=http://HOST:PORT/v1 judge.model=NAME   and by a language model
  bash cmd/eval.sh endpoint=http://HOST:PORT/v1 endpoint_model=NAME model=FOLDER   what a server of OpenAI's API serves;
      endpoint_api=chat sends messages, endpoint_key=VARIABLE holds the key, endpoint_concurrency=64 at once""",
    "ask": """bash cmd/ask.sh [model=RUN or HUGGING_FACE_FOLDER] [key=value ...] "question"

Ask a trained model one question, and see it think, search, read and answer; without model=, the newest run's best.

  bash cmd/ask.sh model=runs/RUN "where was the author of crimson harbor born ?\"""",
}


SMALL = {
    "compare": "search_agent/evaluation/compare.py",
    "report": "search_agent/evaluation/report.py",
    "viewer": "search_agent/viewer/__main__.py",
}
"""Commands without keys: their module's own words are the help."""


@dataclass(frozen=True)
class Preset:
    """One choice of a group: ``reward=f1``."""

    group: str
    name: str
    about: str
    """The first lines of comment in its file, or the plug-in it selects."""
    plugin: str | None


def presets(folder: Path = CONFIG_DIR) -> Iterator[Preset]:
    """Every choice of every group, in order."""
    for path in sorted(folder.glob("*/*.yaml")):
        text = path.read_text()
        plugin = re.search(r"^plugin: *(\S+)", text, re.MULTILINE)
        comment = re.search(r"(?:^# (?!@).+\n)+", text, re.MULTILINE)
        about = " ".join(line.removeprefix("# ") for line in comment[0].splitlines()) if comment else ""
        module = plugin[1] if plugin else None
        yield Preset(path.parent.name, path.stem, about or module or "", module)


def command_help(command: str) -> str:
    """The whole text for ``train``, ``eval`` or ``ask``, and for a small command."""
    if command in SMALL:
        words = ast.get_docstring(ast.parse((CONFIG_DIR.parent / SMALL[command]).read_text())) or ""
        return re.sub(r"python -m search_agent\.[\w.]+", f"bash cmd/{command}.sh", words).replace("``", "")
    choices = list(presets())
    width = max(len(f"{choice.group}={choice.name}") for choice in choices)
    parts = [USAGE[command], "", "Presets:"]
    for choice in choices:
        name = f"  {f'{choice.group}={choice.name}':<{width}}  "
        parts.append(textwrap.fill(choice.about, 120, initial_indent=name, subsequent_indent=" " * len(name)))
    parts += [
        "",
        "Keys, with the code's defaults (a preset may set others; dry_run=true shows what a run would use):",
        "",
    ]
    with absent_packages():
        parts += _key_lists(choices)
    return "\n".join(parts)


def _key_lists(choices: Sequence[Preset]) -> Iterator[str]:
    """The keys of a run, then those of each plug-in that a preset selects."""
    yield help_text(importlib.import_module("search_agent.config").RunConfig)
    by_plugin: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        if choice.plugin:
            by_plugin.setdefault((choice.group, choice.plugin), []).append(f"{choice.group}={choice.name}")
    for (group, plugin), names in by_plugin.items():
        if listing := help_text(importlib.import_module(plugin).Config, group):
            yield from ("", f"Keys with {' or '.join(names)}:", "", listing)


def main(arguments: list[str]) -> int:
    """``python -m search_agent.console.help train``."""
    print(command_help(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
