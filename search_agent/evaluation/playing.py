"""Playing the test split: with a served model in this process (no Ray, no engine, nothing but requests), or with the
engines of rollout workers. Either way each episode is on disk as soon as it has ended, and none is played twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from search_agent.evaluation.journal import Journal, Key
from search_agent.evaluation.served import Chatting, Continuing, Served
from verl.data.tasks import Task
from verl.errors import UserError
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from verl.cluster.pool import RolloutPool
    from verl.rollout.interfaces import Engine
    from verl.rollout.play import EpisodeRequest
    from verl.trainer.run_folder import RunFolder

STAGE = "eval"
FIXED = 256
"""Episodes of a deterministic evaluation that are played, and kept, together."""


async def evaluate_served(
    config: RunConfig, served: Served, folder: RunFolder, results: dict[str, Any]
) -> dict[str, Any]:
    """Play what is not yet in the folder's journal, and say what came out by decoding, as for a model of one's own.

    ``results`` are the keys that decide what is computed.
    """
    from search_agent.agent import AgentSpec
    from search_agent.data.inputs import find_source
    from search_agent.manifests import check_retriever
    from search_agent.openai_client import OpenAIClient
    from search_agent.retrievers import start_retrievers, while_serving
    from verl.rollout.play import play

    with ExitStack() as stack:
        source = find_source(config)
        tasks = source.test.load()[: config.evaluation.test_tasks]
        tokenizer = _tokenizer(config, served, source, tasks)
        await check_retriever(config, folder)
        retrievers = await start_retrievers(config, {"test": source.test.corpus}, folder.logs, stack, source.server)
        context = config.rollout.engine.max_context_tokens
        spec = AgentSpec(config.protocol, config.environment, config.reward, config.client, retrievers.urls, context)
        journal = Journal(folder.path, {**results, **served.played}, fresh=config.fresh)
        done, open_ = still_open(config, tasks, journal)
        agent = spec(tokenizer)
        async with OpenAIClient(served.address) as client:
            chats = served.endpoint_api == "chat"
            make: Callable[..., Engine] = Chatting if chats else Continuing
            engine = make(client, tokenizer, seeds=served.endpoint_seeds)
            await agent.open()
            try:
                playing = play(open_, agent, engine, served.endpoint_concurrency)
                await while_serving(retrievers, keep(playing, done, journal))
            finally:
                await agent.close()
    return conclude(config, tasks, done, folder)


def still_open(
    config: RunConfig, tasks: Sequence[Task], journal: Journal
) -> tuple[dict[Key, Trajectory], list[EpisodeRequest]]:
    """What the journal holds of every decoding's episodes, which is told, and those that are still to be played."""
    from verl.rollout.play import requests_for

    by_id, done = {task.id: task for task in tasks}, dict[Key, Trajectory]()
    wanted: list[EpisodeRequest] = []
    for way in config.evaluation.decodings:
        stage = f"{STAGE}-{way.name}"
        done |= journal.read(stage, by_id)
        wanted += requests_for(tasks, "test", stage, seed=config.seed, samples=way.samples, sampling=way.sampling)
    open_ = [request for request in wanted if key_of(request) not in done]
    if kept := len(wanted) - len(open_):
        print(f"{kept} of {len(wanted)} episodes are on disk from before (fresh=true plays them again)", flush=True)
    return done, open_


def key_of(request: EpisodeRequest) -> Key:
    """What the journal knows an episode by."""
    return request.key.stage, request.task.id, request.key.sample


async def keep(
    playing: AsyncIterator[tuple[EpisodeRequest, Trajectory]], done: dict[Key, Trajectory], journal: Journal
) -> None:
    """Add each episode to both as soon as it has ended."""
    from verl.rollout.episodes import Episode

    async for request, trajectory in playing:
        journal.add(request.key.stage, Episode(request.task, request.split, trajectory))
        done[key_of(request)] = trajectory


async def play_on_workers(
    pool: RolloutPool, requests: Sequence[EpisodeRequest], *, fixed: bool
) -> AsyncGenerator[tuple[EpisodeRequest, Trajectory], None]:
    """Play episodes with the engines here, and yield each as it ends.

    ``fixed`` (a deterministic run) sends ``FIXED`` at a time and waits for all of them: which ones share a batch does
    not depend on time then.
    """
    from verl.rollout.groups import GroupRequest

    async def some(part: Sequence[EpisodeRequest]) -> list[tuple[EpisodeRequest, Trajectory]]:
        groups = await pool.run(
            [
                GroupRequest(n, one.task, 1, one.split, one.key.stage, one.key.step, one.sampling, first=one.key.sample)
                for n, one in enumerate(part)
            ]
        )
        return [(one, group.trajectories[0]) for one, group in zip(part, groups, strict=True)]

    if fixed:
        for start in range(0, len(requests), FIXED):
            for pair in await some(requests[start : start + FIXED]):
                yield pair
        return
    running = [asyncio.create_task(some([request])) for request in requests]
    try:
        for ended in asyncio.as_completed(running):
            yield (await ended)[0]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def conclude(
    config: RunConfig, tasks: Sequence[Task], done: Mapping[Key, Trajectory], folder: RunFolder
) -> dict[str, Any]:
    """What came out by decoding; the episodes go to the folder."""
    from search_agent.evaluation.describe import describe
    from verl.rollout.episodes import episodes_of
    from verl.rollout.groups import Group
    from verl.trainer.evaluator import check_alive

    played = {
        way.name: [
            Group(number, task, [done[f"{STAGE}-{way.name}", task.id, sample] for sample in range(way.samples)])
            for number, task in enumerate(tasks)
        ]
        for way in config.evaluation.decodings
    }
    for name, groups in played.items():
        check_alive(groups)
        folder.write_trajectories(f"{STAGE}-{name}", 0, episodes_of(groups, "test"), keep=1)
    read = config.protocol.build().read
    return {name: describe(groups, read) for name, groups in played.items()}


def _tokenizer(config: RunConfig, served: Served, source: Any, tasks: Sequence[Task]) -> Any:
    """What writes the prompts: the model's own, or messages. Raises UserError if there is none."""
    from search_agent.evaluation.chat_tokens import ChatTokens

    if served.endpoint_api == "chat":
        if getattr(config.environment.config, "framing", "chat") not in ("chat", "chat_turns"):
            raise UserError(
                "endpoint_api=chat sends messages: write environment.framing=chat_turns (or chat, where the server "
                "can continue a reply that was begun)"
            )
        return ChatTokens()
    from pathlib import Path

    from transformers import AutoTokenizer

    from search_agent.data.inputs import model_path
    from search_agent.planning.lengths import check_lengths

    local = config.model == "embedded" or Path(config.model).exists()
    model = model_path(config, source) if local else config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model={model}: the tokenizer of the served model cannot be had ({reason}): write model=FOLDER or a hub "
            "name, or endpoint_api=chat"
        ) from error
    check_lengths({"test": tasks}, config, model)
    return tokenizer
