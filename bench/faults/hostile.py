"""Nothing that a policy writes may abort an episode, break a server, or earn what it does not say.

100,000 texts (2,000 with ``--quick``) drawn from a seed go as turns of episodes through protocols, environment, client,
two real servers (BM25, and BM25 under a cross-encoder with random weights) and every reward: forged and torn tags,
control characters, lone surrogates, other scripts, white space and words of any length, accepted answers in all the
places that must not count. An abort or a server's 5xx would take an episode out of scoring; a reward above that of a
valid format is held against what the policy said in its answer and, for AutoRefine, in refinements of real passages.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.faults.hostile_site import WORDS, byte_tokenizer, servers
from bench.harness import Figure, main
from search_agent.agent import AgentSpec, SearchAgent
from search_agent.environment import Config as EnvironmentConfig
from search_agent.protocols import autorefine, research, search_r1
from search_agent.retrieval.config import ClientConfig
from search_agent.rewards import autorefine as autorefine_reward
from search_agent.rewards import em, f1
from search_agent.rewards import research as research_reward
from search_agent.rewards import search_r1 as search_r1_reward
from search_agent.tools import open as open_tool
from search_agent.tools import search as search_tool
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.interfaces import Generation, Sampling, Turn
from verl.trajectory import FinishReason, Trajectory

TEXTS, QUICK_TEXTS = 100_000, 2_000
TOGETHER = 128
"""Episodes at a time."""
MAX_TURNS = 4
GOLDS = (("zorblax",), ("crimson harbor", "zorblax"), ("The The",), ("A",), ("no",), ("+",), ("1",))
"""Accepted answers; most of the matches that are too easy are of one that normalises to little or nothing."""
TAGS = ("think", "search", "refine", "answer", "open", "documents", "information", "result")
PIECES = (
    *(f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")),
    *("<answer", "</", ">", "<|im_end|>", "<|endoftext|>", "\\boxed{", "\\fbox{", "}", "\\text{", "Doc 1(Title: x) "),
    *("\x00", "\x1b[31m", "\r\n", "\u2028", "\u200b", "\u202e", "\ufeff", "\ud800", "\udfff", "\U0010ffff", "e\u0301"),
    *("東京タワー", "Москва", "القاهرة", "ไทย", "🗼" * 5, "İ", "ß", "+", "-", "*", "?", "|", '"', "'", "\\"),
    *(
        "%s",
        "{0}",
        "{question}",
        '{"queries": null}',
        "http://x/?q=1&k=2",
        "'; DROP TABLE x; --",
        "..",
        "&#0;",
        "\\u0000",
    ),
    *("title:(a OR b) AND NOT c~2^3", *(f" {word} " for word in WORDS)),
)


@dataclass(frozen=True)
class Arm:
    """One protocol with a reward, and what the reward pays for a valid format alone."""

    name: str
    protocol: Plugin
    reward: Plugin
    format_pays: float = 0.0
    published: bool = False
    """Whether it pays as the published code does, which looks for an accepted answer in all that the policy wrote."""


@dataclass
class Tally:
    """What the texts came to."""

    texts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    found: int = 0
    """Searches that showed passages."""
    paid: int = 0
    """Episodes that earned something."""
    aborted: list[str] = field(default_factory=list)
    unearned: list[str] = field(default_factory=list)
    """Episodes that were paid for nothing."""


def arms() -> list[Arm]:
    """Every protocol and reward there is, as published and as by default."""
    refining = Plugin(autorefine.__name__, autorefine.Config("short"))
    searching = Plugin(search_r1.__name__, search_r1.Config("short"))
    boxing = Plugin(research.__name__, research.Config(instruction="short"))
    return [
        Arm("autorefine", refining, Plugin(autorefine_reward.__name__, autorefine_reward.Config())),
        Arm("em", refining, Plugin(em.__name__, em.Config())),
        Arm("f1", searching, Plugin(f1.__name__, f1.Config())),
        Arm("search_r1", searching, Plugin(search_r1_reward.__name__, search_r1_reward.Config())),
        Arm("research", boxing, Plugin(research_reward.__name__, research_reward.Config()), 0.1),
        Arm(
            "autorefine upstream",
            Plugin(autorefine.__name__, autorefine.Config("short", compat="upstream")),
            Plugin(autorefine_reward.__name__, autorefine_reward.Config(compat="upstream")),
            published=True,
        ),
        Arm(
            "research upstream",
            Plugin(research.__name__, research.Config(instruction="short", compat="upstream")),
            Plugin(research_reward.__name__, research_reward.Config(form="code")),
            0.1,
            published=True,
        ),
    ]


def draw(rng: random.Random) -> str:
    """One turn's text: most of them have the shape that a protocol asks for, around contents that are hostile."""

    def noise(most: int) -> str:
        pieces = [rng.choice(PIECES) for _ in range(rng.randrange(most))]
        if rng.random() < 0.02:
            pieces.append(rng.choice((" ", "x", "東", "a ", "<answer>", "\x00")) * rng.randrange(20_000))
        return "".join(pieces)

    def block(tag: str) -> str:
        word = rng.choice(WORDS)
        if rng.random() < 0.4:
            clean = rng.choice(("zorblax", "no", "1", "crimson harbor", word))
            return f"<{tag}> {clean} </{tag}>" if rng.random() < 0.7 else f"<{tag}> \\boxed{{{clean}}} </{tag}>"
        return f"<{tag}>{noise(6)}{word if rng.random() < 0.7 else ''}{noise(4)}</{tag}>"

    if rng.random() < 0.3:
        return noise(30)
    opening = block(rng.choice(("think", "think", "refine")))
    return opening + block(rng.choice(("search", "search", "search", "open", "answer"))) + noise(2)


def drawn(rng: random.Random) -> Iterator[tuple[str, FinishReason]]:
    """Turns without end, and how each of them ended."""
    while True:
        yield draw(rng), rng.choice(("stop", "stop", "stop", "stop", "end_of_turn", "length"))


class Policy:
    """An engine that writes the turns it was given, whatever it is asked."""

    def __init__(self, turns: Iterator[tuple[str, FinishReason]]) -> None:
        self._turns = turns
        self.texts: list[str] = []

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """See ``verl.rollout.interfaces.Engine``."""
        text, ended = next(self._turns)
        self.texts.append(text)
        count = min(4, turn.max_tokens)
        return Generation([1] * count, text, [-1.0] * count, [0] * count, ended)


def earned(arm: Arm, task: Task, trajectory: Trajectory, reward: float) -> bool:
    """Whether a reward is the format's at most, or the policy said a part of an accepted answer where it counts."""
    if reward <= arm.format_pays:
        return True
    turns = [turn.text.lower() for turn in trajectory.generated]
    shown = [s.turn for s in trajectory.segments if any(call.results for call in s.calls)]
    refined = turns[shown[0] + 1 :] if shown and arm.name == "autorefine" else []
    answers = re.findall(r"<answer>(.*?)</answer>", turns[-1], re.DOTALL)
    said = "".join(turns) if arm.published else " ".join([*answers, *(text for text in refined if "<refine>" in text)])
    return any(word in said for gold in task.golden_answers for word in gold.lower().split())


async def play(agent: SearchAgent, arm: Arm, task: Task, split: str, policy: Policy, tally: Tally) -> None:
    """One episode, scored and counted."""
    key = EpisodeKey(0, "train", 0, task.id, 0)
    trajectory = await run_episode(task, key, agent.environment(task, split), policy, Sampling())
    tally.outcomes[trajectory.outcome or "none"] += 1
    tally.texts += len(policy.texts)
    if trajectory.outcome == "aborted":
        tally.aborted.append(f"{arm.name}: {trajectory.reason}: {policy.texts!r}")
        return
    tally.found += sum(bool(call.results) for call in trajectory.calls)
    score = await agent.score(task, trajectory)
    tally.paid += score.reward > 0
    json.loads(json.dumps(trajectory.to_record()))  # as a run keeps it
    if not earned(arm, task, trajectory, score.reward):
        tally.unearned.append(f"{arm.name}: {score.reward} for {task.golden_answers}: {policy.texts!r}")


def make_agent(arm: Arm, urls: Mapping[str, Sequence[str]], tokenizer: Any) -> SearchAgent:
    """The agent of an arm, with both tools."""
    tools = {
        "search": Plugin(search_tool.__name__, search_tool.Config(excerpt_words=4)),
        "open": Plugin(open_tool.__name__, open_tool.Config()),
    }
    bounds = EnvironmentConfig(max_turns=MAX_TURNS, max_observation_tokens=600, tools=tools)
    environment = Plugin("search_agent.environment", bounds)
    return SearchAgent(AgentSpec(arm.protocol, environment, arm.reward, ClientConfig(retries=0), urls, 4096), tokenizer)


async def play_texts(texts: int, urls: Mapping[str, Sequence[str]], tokenizer: Any) -> Tally:
    """Play episodes of all arms in turn until so many texts were written."""
    tally, rng = Tally(), random.Random(0)
    while tally.texts < texts:
        for arm in arms():
            agent, episodes = make_agent(arm, urls, tokenizer), []
            for number in range(TOGETHER):
                task = Task(f"t{number}", "who wrote it?", rng.choice(GOLDS))
                policy = Policy(drawn(random.Random(rng.random())))
                episodes.append(play(agent, arm, task, rng.choice(list(urls)), policy, tally))
            await agent.open()
            await asyncio.gather(*episodes)
            await agent.close()
    return tally


async def server_faults(urls: Sequence[str]) -> tuple[int, int]:
    """Replies of the servers, and those of them with a status of 5xx."""
    found: list[tuple[str, float]] = []
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/metrics") as reply:
                lines = re.findall(r'retrieval_requests_total{.*?status="(\d+)"} (\S+)', await reply.text())
                found += [(status, float(count)) for status, count in lines]
    return int(sum(count for _, count in found)), int(sum(count for status, count in found if status >= "500"))


def figures(quick: bool) -> Iterator[Figure]:
    """Aborts, server errors and unearned rewards."""
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as urls:
        tally = asyncio.run(play_texts(QUICK_TEXTS if quick else TEXTS, urls, byte_tokenizer()))
        replies, broken = asyncio.run(server_faults([url for each in urls.values() for url in each]))
    for line in [*tally.aborted[:5], *tally.unearned[:5]]:
        print(line[:2000].encode("utf-8", "backslashreplace").decode())
    yield Figure("hostile texts", tally.texts, "texts")
    yield Figure("episodes that finished", tally.outcomes["finished"], "episodes")
    yield Figure("searches that showed passages", tally.found, "searches")
    yield Figure("rewards above 0", tally.paid, "episodes")
    yield Figure("replies of the servers", replies, "replies")
    yield Figure.at_most("episodes aborted", len(tally.aborted), "episodes", 0)
    yield Figure.at_most("replies with a status of 5xx", broken, "replies", 0)
    yield Figure.at_most("rewards without evidence", len(tally.unearned), "episodes", 0)


if __name__ == "__main__":
    main(figures)
