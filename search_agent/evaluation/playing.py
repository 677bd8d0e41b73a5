"""Playing the test split with a served model, in this process: no Ray, no engine, nothing but requests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from search_agent.evaluation.journal import Journal, Key
from search_agent.evaluation.served import Chatting, Continuing, Served
from verl.config.compose import config_hash
from verl.data.tasks import Task
from verl.errors import UserError

if TYPE_CHECKING:
    from verl.rollout.groups import Group
    from verl.rollout.interfaces import Engine
    from verl.trainer.run_folder import RunFolder
    from verl.trajectory import Trajectory

STAGE = "eval"


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

    with ExitStack() as stack:
        source = find_source(config)
        tasks = source.test.load()[: config.evaluation.test_tasks]
        tokenizer = _tokenizer(config, served, source, tasks)
        await check_retriever(config, folder)
        retrievers = await start_retrievers(config, {"test": source.test.corpus}, folder.logs, stack, source.server)
        context = config.rollout.engine.max_context_tokens
        spec = AgentSpec(config.protocol, config.environment, config.reward, config.client, retrievers.urls, context)
        journal = Journal(folder.path / f"journal-{config_hash({**results, **served.played})}")
        agent = spec(tokenizer)
        async with OpenAIClient(served.address) as client:
            chats = served.endpoint_api == "chat"
            engine: Engine = Chatting(client, tokenizer) if chats else Continuing(client, tokenizer)
            await agent.open()
            try:
                playing = play_on(config, tasks, agent, engine, served.endpoint_concurrency, journal)
                played = await while_serving(retrievers, playing)
            finally:
                await agent.close()
    return _conclude(config, played, folder)


async def play_on(
    config: RunConfig, tasks: Sequence[Task], agent: Any, engine: Any, concurrency: int, journal: Journal
) -> dict[str, list[Group]]:
    """Every decoding's groups, in order of tasks; each episode is in the journal as soon as it has ended."""
    from verl.rollout.episodes import Episode
    from verl.rollout.groups import Group
    from verl.rollout.play import play, requests_for

    by_id, ways = {task.id: task for task in tasks}, config.evaluation.decodings
    done: dict[Key, Trajectory] = {}
    for way in ways:
        done |= journal.read(f"{STAGE}-{way.name}", by_id)
    wanted = chain.from_iterable(
        requests_for(tasks, "test", f"{STAGE}-{way.name}", seed=config.seed, samples=way.samples, sampling=way.sampling)
        for way in ways
    )
    open_ = (request for request in wanted if (request.key.stage, request.task.id, request.key.sample) not in done)
    async for request, trajectory in play(open_, agent, engine, concurrency):
        done[request.key.stage, request.task.id, request.key.sample] = trajectory
        journal.add(request.key.stage, Episode(request.task, request.split, trajectory))
    return {
        way.name: [
            Group(number, task, [done[f"{STAGE}-{way.name}", task.id, sample] for sample in range(way.samples)])
            for number, task in enumerate(tasks)
        ]
        for way in ways
    }


def _conclude(config: RunConfig, played: dict[str, list[Group]], folder: RunFolder) -> dict[str, Any]:
    from search_agent.evaluation.describe import describe
    from verl.rollout.episodes import episodes_of
    from verl.trainer.evaluator import check_alive

    for name, groups in played.items():
        check_alive(groups)
        folder.write_trajectories(f"{STAGE}-{name}", 0, episodes_of(groups, "test"), keep=1)
    return {name: describe(groups) for name, groups in played.items()}


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
