"""What a turn takes besides its tokens: episodes of a script, with the quick start's engine, environment and searches.

The engine writes as many tokens as the script's turn has; the environment reads the script. So a policy that was never
trained plays episodes as a trained one does, of known length.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.rollout.interfaces import Engine, Generation, Sampling, Turn

if TYPE_CHECKING:
    from search_agent.config import RunConfig
    from search_agent.planning.rates import Rates
    from verl.rollout.engine import VllmEngine
    from verl.rollout.play import EpisodeRequest
    from verl.trajectory import FinishReason

SAMPLES = 8


@dataclass(frozen=True)
class Played:
    """A batch of episodes that began together."""

    seconds: float
    turns: int
    written: int
    """Tokens of all episodes."""
    longest: int
    """Tokens of the longest."""
    read: int

    def turn_s(self, rates: Rates) -> float:
        """What is left for a turn when all tokens have taken what ``rates`` says."""
        tokens = self.longest * rates.decode_s(self.written / self.longest) + self.read * rates.read_s
        return max(0.0, self.seconds - tokens) / self.turns


@dataclass
class Scripted:
    """One episode's view of an engine: ``Engine`` of ``verl.rollout.interfaces``."""

    engine: Engine
    texts: Iterator[str]
    tokenizer: Any

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """The next text of the script, when the engine has written as many tokens."""
        from search_agent.protocols.framing import encode_markup

        text = next(self.texts)
        ids = encode_markup(self.tokenizer, text)
        written = await self.engine.generate(token_ids, replace(turn, max_tokens=len(ids)), sampling, seed)
        stop = next((mark for mark in turn.stop if mark in text), None)
        reason: FinishReason = "end_of_turn" if stop is None else "stop"
        count = len(ids)
        return Generation(ids, text, [-1.0] * count, [written.versions[0]] * count, reason, stop)


async def play_batches(
    engine: VllmEngine, model: Path, corpus: Path, config: RunConfig, groups: int, batches: int
) -> list[Played]:
    """Batches of as many groups of the train split, each of other questions; the first warms up and is left out."""
    from transformers import AutoTokenizer

    from preprocess.embedded.splits import draw_splits
    from preprocess.embedded.styles import make_style
    from preprocess.embedded.teacher import Mixture, teach
    from search_agent.agent import AgentSpec
    from search_agent.retrievers import start_retrievers
    from verl.rollout.play import play, requests_for

    split, style, tokenizer = (
        draw_splits(0, 5, 5)["train"],
        make_style("autorefine"),
        AutoTokenizer.from_pretrained(model),
    )
    chance, mixture, found = random.Random(0), Mixture(), []

    def seat(request: EpisodeRequest) -> AbstractContextManager[Engine]:
        hops = request.task.metadata["hops"]
        steps = teach(request.task, split.world, mixture.draw(hops, chance), chance)
        return nullcontext(Scripted(engine, (text for step in steps for text in style.write(step)), tokenizer))

    with ExitStack() as stack:
        urls = (await start_retrievers(config, {"train": corpus}, model, stack)).urls
        context = config.rollout.engine.max_context_tokens
        agent = AgentSpec(config.protocol, config.environment, config.reward, config.client, urls, context)(tokenizer)
        await agent.open()
        for batch in range(batches + 1):
            tasks = split.tasks[batch * groups : (batch + 1) * groups]
            requests = requests_for(tasks, "train", "train", seed=batch, samples=SAMPLES, sampling=Sampling())
            began = time.perf_counter()
            episodes = [episode async for _, episode in play(requests, agent, engine, seat=seat)]
            seconds = time.perf_counter() - began
            written = [episode.num_policy_tokens for episode in episodes]
            turns, tokens = sum(episode.num_turns for episode in episodes), sum(map(len, episodes))
            found.append(Played(seconds, turns, sum(written), max(written), tokens - sum(written)))
        await agent.close()
    return found[1:]
