"""``bash cmd/ask.sh model=RUN "question"``: one question to a trained model; thoughts, searches and answer in colour.

No Ray and no learner: the engine runs in this process, beside a retrieval server on loopback.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from search_agent.config import RunConfig
from search_agent.console.command import run_command
from search_agent.evaluate import RUNS, evaluated_config, writable_folder
from verl.config.compose import CONFIG_DIR
from verl.errors import UserError, refuse
from verl.rollout.progress import Unwatched

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from verl.trajectory import Segment, Trajectory

Show = Callable[[str, str], None]
"""Called with the kind of a segment and its text, as soon as it is there."""

READY_TIMEOUT_S = 5.0
"""Who asks a question waits; a server that loads for longer is to be started first."""
_KEYS = {field.name for field in fields(RunConfig)} | {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}


def main(arguments: Sequence[str]) -> int:
    """Ask what the arguments that are no overrides say; ``model=`` as for ``cmd/eval.sh``."""
    overrides, question = split_arguments(arguments)
    config = evaluated_config(overrides)
    from rich.text import Text

    from search_agent.console.screen import say
    from search_agent.console.screen import screen as plain_console
    from search_agent.console.transcript import in_colour, printable
    from search_agent.evaluation.doubts import doubts
    from search_agent.planning.model_folder import model_faults
    from verl.cluster.processes import thread_environment
    from verl.data.tasks import Task
    from verl.rollout.groups import Group
    from verl.trainer.summary import summarize

    refuse(model_faults(config))
    os.environ.update(thread_environment(config.rollout.engine.threads))
    logs = writable_folder(Path(config.run_dir or RUNS / "ask"))
    with apart_from_logs(logs / "ask.log") as stream:
        console = plain_console(stream)

        protocol = config.protocol.build()

        def show(kind: str, text: str) -> None:
            console.print(in_colour(kind, text, protocol), end="", soft_wrap=True)

        with spinner(console, f"loading {config.model}"):
            session = Session(config, logs)
        began = time.monotonic()
        trajectory, answer = asyncio.run(session.ask(question, show))
        searches = len(trajectory.calls)
        found = "no answer" if answer is None else f"answer: {printable(answer)}"
        console.print(Text(f"\n\n{found}", style="bold"))
        seconds = f"{searches} searches, {trajectory.num_policy_tokens} tokens, {time.monotonic() - began:.1f} s"
        played = summarize([Group(0, Task("ask", question, ("",)), [trajectory])])
        say(console, *(f"warning: {doubt}" for doubt in doubts(played)))
        console.print(f"{seconds} ({trajectory.outcome}; logs: {logs})", style="dim")
    return 0


def spinner(console: Console, text: str) -> Live:
    """Something that turns while the block runs. Unlike ``console.status`` it leaves what libraries print alone."""
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    return Live(
        Spinner("dots", Text(text)), console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    )


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Overrides and the question, which is all the rest. Raises UserError if there is none.

    An override begins with a key that there is and ``=``: ``E=mc2`` may stand in a question.
    """
    overrides = [argument for argument in arguments if _names_key(argument)]
    question = " ".join(argument for argument in arguments if not _names_key(argument)).strip()
    if not question:
        raise UserError('there is no question; write bash cmd/ask.sh model=RUN "your question"')
    return overrides, question


def _names_key(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and key.lstrip("+~").partition(".")[0] in _KEYS


class Session:
    """A model in an engine, and where its searches go."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """Load everything; takes seconds. Raises UserError on a model that cannot be served."""
        from transformers import AutoTokenizer

        from search_agent.data.inputs import find_source, model_path
        from search_agent.manifests import read_manifests
        from search_agent.retrievers import start_retrievers
        from verl.rollout.engine import VllmEngine

        self._config = config
        self._stack = ExitStack()
        source = find_source(config)
        model, corpus = model_path(config, source), source.test.corpus
        self._urls = asyncio.run(start_retrievers(config, {"test": corpus}, folder, self._stack, source.server)).urls
        if config.retriever_urls:
            asyncio.run(read_manifests(config, self._urls["test"], READY_TIMEOUT_S))
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._engine = VllmEngine(model, config.rollout.engine, seed=config.seed)

    async def ask(self, question: str, show: Show) -> tuple[Trajectory, str | None]:
        """Play one greedy episode and close; returns it with the answer that was read from it."""
        from search_agent.agent import AgentSpec
        from verl.data.tasks import Task
        from verl.rollout.play import play, requests_for

        config = self._config
        context = config.rollout.engine.max_context_tokens
        spec = AgentSpec(config.protocol, config.environment, config.reward, config.client, self._urls, context)
        agent = spec(self._tokenizer)
        await agent.open()
        try:
            asked = requests_for([Task("ask", question, ("",))], "test", "ask", seed=config.seed)
            playing = play(asked, agent, self._engine, score=False, watch=lambda _: nullcontext(Shown(show)))
            [trajectory] = [trajectory async for _, trajectory in playing]
        finally:
            await agent.close()
            await self._engine.close()
            self._stack.close()
        return trajectory, config.protocol.build().read(trajectory).answer


class Shown(Unwatched):
    """Shows each segment of an episode as it comes."""

    def __init__(self, show: Show) -> None:
        self._show = show

    def wrote(self, segment: Segment) -> None:
        """See ``Watcher``."""
        self._show(segment.kind, segment.text)


@contextmanager
def apart_from_logs(log: Path) -> Iterator[TextIO]:
    """A stream to the screen, while everything else that this process and its libraries print goes to ``log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        with os.fdopen(os.dup(saved[0]), "w") as screen:
            yield screen
    finally:
        for number, original in zip((1, 2), saved, strict=True):
            os.dup2(original, number)
            os.close(original)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="ask"))
