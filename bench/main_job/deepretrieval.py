"""DeepRetrieval's small twins: what a query that was learnt finds, beside what the question itself finds.

Each run is `bash cmd/train.sh recipe=deepretrieval_...mini`; names that test questions are about occur in no training
question. The question as it stands is searched for on the same corpus by the same server. The picture is
``docs/results/deepretrieval.png``. ``--quick`` makes one run too short to learn and draws nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.main_job.quickstart import SHORT, read_summary
from search_agent.data.inputs import find_source
from search_agent.data.source import Source
from search_agent.evaluation.metrics import recall
from search_agent.grid.members import Member, plan_grid
from search_agent.grid.run import run_grid
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import start_server
from search_agent.rewards.deepretrieval import relevant
from verl.tracking.jsonl import read_metrics

TWINS = {
    "deepretrieval_mini": ("passages, BM25", "recall@3"),
    "deepretrieval_pubmed_mini": ("articles, PubMed's format", "recall@3000"),
    "deepretrieval_sql_mini": ("database, SQL", "accuracy"),
}
PICTURE = ROOT / "docs" / "results" / "deepretrieval.png"


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs in a folder of their own; it stays if one of them has no result."""
    Path("runs").mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(prefix="deepretrieval-", dir="runs")
    names = ["deepretrieval_mini"] if quick else list(TWINS)
    short = [key for key in SHORT if not key.startswith("data.traces")] if quick else []
    arguments = [f"recipe={','.join(names)}", f"run_dir={folder}", *short]
    _, members = plan_grid(arguments)
    run_grid(arguments)
    finished = {member.config.name: member for member in members if member.finished}
    yield Figure.at_least("runs that finished", len(finished) / len(members), "share", 1.0)
    lines = {}
    for name, member in finished.items():
        label, metric = TWINS[name]
        source = find_source(member.config)
        baseline = None if metric == "accuracy" else question_recall(source, int(metric.partition("@")[2]))
        yield from figures(label, metric, read_summary(member), baseline, judged=not quick)
        lines[label] = (curve(member, metric), baseline)
    if not quick and finished:
        draw(lines, PICTURE)
        print(f"picture: {PICTURE.relative_to(ROOT)}")
    if len(finished) == len(members):
        shutil.rmtree(folder)


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


def curve(member: Member, metric: str) -> list[tuple[int, float]]:
    """(reinforcement step, mean of the sampled episodes)."""
    begin = member.config.warmup.steps
    records = read_metrics(member.folder / "metrics.jsonl")
    return [(record["step"] - begin, record[metric]) for record in records if metric in record]


def draw(lines: Mapping[str, tuple[Sequence[tuple[int, float]], float | None]], path: Path) -> None:
    """One line a twin; the question as it stands is dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (label, (points, question)) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label)
        if question is not None:
            axes.axhline(question, color=f"C{number}", linestyle="--", alpha=0.6, label=f"{label}: the question itself")
    axes.set_xlabel("reinforcement step")
    axes.set_ylabel("recall, or execution accuracy (training, sampled)")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main(measure)
