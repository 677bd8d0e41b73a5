"""A real retrieval server made slow: everything is passed on, searches after their seeded latency."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from bench.harness import ROOT
from bench.rollout.latency import latency_s

if TYPE_CHECKING:
    from aiohttp import web


def start(upstream: str, median_s: float) -> tuple[str, subprocess.Popen[str]]:
    """The proxy's address, and its process, which ends when its standard input is closed."""
    code = "import sys; from bench.rollout.proxy import child; child(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, upstream, str(median_s)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process.stdout.readline().strip(), process


def child(upstream: str, median_s: str) -> None:
    """The process of a proxy."""
    asyncio.run(serve(upstream, float(median_s)))


async def serve(upstream: str, median_s: float) -> None:
    """Print the address, and pass on until standard input ends."""
    import aiohttp
    from aiohttp import web

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            if request.path == "/retrieve":
                queries = (await request.json())["queries"]
                await asyncio.sleep(max(latency_s(query, median_s) for query in queries))
            async with session.request(
                request.method,
                upstream + request.path_qs,
                data=body,
                headers={"Content-Type": request.headers.get("Content-Type", "application/json")},
            ) as reply:
                return web.Response(body=await reply.read(), status=reply.status, content_type=reply.content_type)

        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", forward)
        await until_input_ends(app)


async def until_input_ends(app: web.Application) -> None:
    """Serve on a free loopback port, print the address, and end with standard input."""
    from aiohttp import web

    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()
