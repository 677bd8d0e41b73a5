"""DeepRetrieval's small twins: what a query that was learnt finds, beside what the question itself finds.

Each run is `bash cmd/train.sh recipe=deepretrieval_...mini`; names that test questions are about occur in no training
question. The question as it stands is searched for on the same corpus by the same server. The picture is
``docs/results/deepretrieval.png``. ``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.runs import SHORT, by_recipe, made_runs, new_folder, read_curve, read_summary, share_finished
from search_agent.console.screen import new_picture, save_picture
from search_agent.data.inputs import find_source
from search_agent.data.source import Source
from search_agent.evaluation.metrics import recall
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import start_server
from search_agent.rewards.deepretrieval import relevant

TWINS = {
    "deepretrieval_mini": ("passages, BM25", "recall@3"),
    "deepretrieval_pubmed_mini": ("articles, PubMed's format", "recall@3000"),
    "deepretrieval_sql_mini": ("database, SQL", "accuracy"),
}
PICTURE = ROOT / "docs" / "results" / "deepretrieval.png"


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs, search for their questions as they stand, and draw both together."""
    names = ["deepretrieval_mini"] if quick else list(TWINS)
    with made_runs(new_folder("deepretrieval"), [f"recipe={','.join(names)}", *(SHORT if quick else [])]) as members:
        yield share_finished(members)
        lines = {}
        for name, member in by_recipe(members).items():
            label, metric = TWINS[name]
            source = find_source(member.config)
            baseline = None if metric == "accuracy" else question_recall(source, int(metric.partition("@")[2]))
            yield from figures(label, metric, read_summary(member), baseline, judged=not quick)
            lines[label] = (read_curve(member, metric), baseline)
        if not quick and lines:
            draw(lines, PICTURE)
            print(f"picture: {PICTURE.relative_to(ROOT)}")


def question_recall(source: Source, k: int) -> float:
    """Mean recall at ``k`` over the test questions, each searched for as it stands."""
    assert source.test.corpus is not None
    with tempfile.TemporaryDirectory() as logs:
        server = start_server(source.test.corpus, log=Path(logs) / "server.log", options=source.server)
        with server:
            return asyncio.run(_recall(server.url, source, k))


async def _recall(url: str, source: Source, k: int) -> float:
    async with RetrievalClient(ClientConfig(urls=(url,))) as client:
        tasks = source.test.load()
        results = await asyncio.gather(*(client.search(task.question, k, ids_only=True) for task in tasks))
    found = [[document.id for document in result.documents] for result in results]
    return sum(recall(ids, relevant(task), k) for ids, task in zip(found, tasks, strict=True)) / len(tasks)


def figures(
    label: str, metric: str, summary: Mapping[str, Any], question: float | None, *, judged: bool
) -> Iterator[Figure]:
    """What one run found on the test; without ``judged``, what needs learning is recorded only."""
    before, after = summary["before"], summary["after"]
    for how in ("greedy", "sampled"):
        yield Figure(f"{label}: {metric} before, {how}", before[how][metric], "share")
        yield Figure(f"{label}: {metric} after, {how}", after[how][metric], "share")
    if question is None:
        gain = after["greedy"][metric] - before["greedy"][metric]
        yield Figure.at_least(f"{label}: greedy gain over the warm-up", gain, "share", 0.2).judged(judged)
    else:
        yield Figure(f"{label}: {metric} of the question as it stands", question, "share")
        ratio = after["greedy"][metric] / question
        yield Figure.at_least(f"{label}: greedy over the question as it stands", ratio, "x", 1.5).judged(judged)
    if metric == "recall@3" and question is not None:
        yield Figure.at_most(f"{label}: the question as it stands", question, "share", 0.45)
    yield Figure.at_most(f"{label}: aborted episodes", summary["aborted"], "episodes", 0)
    yield Figure(f"{label}: seconds of the run", sum(summary["seconds"].values()), "s")


def draw(lines: Mapping[str, tuple[Sequence[tuple[int, float]], float | None]], path: Path) -> None:
    """One line a twin; the question as it stands is dashed."""
    figure, axes = new_picture(figsize=(7, 4.2))
    for number, (label, (points, question)) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label)
        if question is not None:
            axes.axhline(question, color=f"C{number}", linestyle="--", alpha=0.6, label=f"{label}: the question itself")
    axes.set_xlabel("reinforcement step")
    axes.set_ylabel("recall, or execution accuracy (training, sampled)")
    axes.set_ylim(0, 1.02)
    save_picture(figure, [axes], path)


if __name__ == "__main__":
    main(measure)
