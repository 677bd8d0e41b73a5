"""How large the viewer's page is for 50,000 episodes of the quick start's kind, and how soon it opens.

Episodes are drawn, not copied: random words, random log-probs of an untrained policy, two searches each. So they pack
worse than those of a run. The page is opened from its file in headless Chromium, where one is installed, until the
overview stands, then the table, then an episode. ``--quick`` packs a tenth.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.harness import Figure, main
from search_agent.protocols import autorefine
from search_agent.viewer.__main__ import MAX_BYTES, write_page
from search_agent.viewer.pack import pack
from search_agent.viewer.runs import Run
from tests.browser import BROWSER, browser, opened
from verl.data.tasks import Task
from verl.rollout.episodes import Episode
from verl.trajectory import ToolCall, ToolResult, Trajectory

EPISODES = 50_000
SAMPLES = 8
OPENS_S = 3.0
_DRAW = random.Random(0)
_WORDS = ["".join(_DRAW.choices("etaoinshrdlucmfw", k=_DRAW.randint(2, 9))) for _ in range(2000)]


class Vocabulary:
    """A token a word, with the space before it."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Words by number; the tags are numbers beyond them."""
        return "".join(f" {_WORDS[identifier]}" for identifier in ids)


def figures(quick: bool) -> Iterator[Figure]:
    """Size, seconds to pack, seconds to open."""
    n = EPISODES // 10 if quick else EPISODES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "viewer.html"
        began = time.perf_counter()
        size = write_page(pack([Run("drawn", {}, drawn(n), autorefine.build(autorefine.Config()), Vocabulary())]), path)
        yield Figure(f"{n:,} episodes, packing", time.perf_counter() - began, "s")
        yield Figure.at_most(f"{n:,} episodes, page", size / 2**20, "MiB", MAX_BYTES / 2**20 * n / EPISODES)
        if BROWSER is not None:
            seconds = asyncio.run(opening(path, Path(folder)))
            for place, value in seconds.items():
                yield Figure.at_most(f"{n:,} episodes, {place} stands after", value, "s", OPENS_S)


def drawn(episodes: int) -> Iterator[Episode]:
    """Episodes of a question, ``SAMPLES`` after each other."""
    for number in range(episodes):
        if number % SAMPLES == 0:
            identifier = f"train-{number // SAMPLES}"
            task = Task(identifier, f"{words(9)}?", (words(2),), {"supporting_ids": [identifier]})
        yield Episode(task, "train", _played(task, number % SAMPLES), "train", 1 + number // 128)


def words(count: int) -> str:
    """Random words."""
    return " ".join(_DRAW.choices(_WORDS, k=count))


def _played(task: Task, sample: int) -> Trajectory:
    trajectory = Trajectory(task.id, sample, outcome="finished", reward=float(_DRAW.random() < 0.5))
    trajectory.append_prompt(range(17), f"Search, refine, answer. Question: {task.question}\n")
    for turn in range(3):
        ids = [_DRAW.randrange(len(_WORDS)) for _ in range(20)]
        logprobs = [-_DRAW.expovariate(1.0) if _DRAW.random() < 0.5 else -0.003 for _ in ids]
        trajectory.append_generated(ids, Vocabulary().decode(ids), logprobs, [0] * len(ids), "stop")
        if turn < 2:
            results = tuple(ToolResult(f"{words(1)}-{turn}", _DRAW.random() * 9, words(2)) for _ in range(2))
            shown = "\n".join(f"Doc {n}(Title: {result.title}) {words(12)}." for n, result in enumerate(results, 1))
            call = ToolCall("search", words(3), results, latency_s=_DRAW.random() / 50)
            trajectory.append_observation(range(40), f"\n\n<documents>{shown}</documents>\n\n", [call])
    trajectory.reward_parts = {
        "em": trajectory.reward or 0.0,
        "f1": 0.5,
        "cover": 0.0,
        "answered": 1.0,
        "searches": 2.0,
    }
    return trajectory


async def opening(path: Path, folder: Path) -> dict[str, float]:
    """Seconds from the address to what is to be seen, for three addresses."""
    places = {
        "the overview": ("#/", "document.querySelector('.facts-table')"),
        "the table": ("#/episodes", "document.querySelectorAll('.rows .row').length > 9"),
        "an episode": ("#/episode/4321", "document.querySelectorAll('.segment').length > 5"),
    }
    seconds = {}
    with browser(folder / "profile") as port:
        for name, (place, condition) in places.items():
            async with opened(port) as page:
                began = time.perf_counter()
                await page.show(f"{path.as_uri()}{place}")
                await page.until(condition)
                seconds[name] = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    main(figures)
