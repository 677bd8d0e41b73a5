"""Archives of at most 44 MiB with this project and what it needs, for a card without a package registry.

    python -m bench.gpu.bundle OUT [--python 3.12] [--card 90]

On a machine with a registry (through pip as it is set up) and no card. The card's Python has torch, torchvision,
transformers and what comes with them (numpy, pandas, pyarrow, peft, aiohttp, numba, triton); vLLM, Ray, Hydra and the
rest come along, without what ``engine`` and ``loop`` never import and without device code of other cards. There:

    mkdir sleuth && for a in sleuth-*.tar.xz; do tar -xJf $a -C sleuth; done
    cd sleuth/project && export PYTHONPATH=$PWD:$PWD/../packages HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0
    python -m compileall -q -j 0 ../packages . ; python -m bench.gpu.engine
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import archives
from bench.gpu.fatbin import keep_only
from bench.harness import ROOT

NEEDED = (
    "annotated-doc annotated-types anyio apache-tvm-ffi astor blake3 bm25s cachetools cbor2 cloudpickle "
    "compressed-tensors depyf dill distro dnspython docstring-parser email-validator fastapi fastsafetensors "
    "googleapis-common-protos grpcio h11 httpcore httpcore2 httptools httpx httpx2 hydra-core ijson interegular "
    "jiter jmespath jsonschema jsonschema-specifications lark llguidance lm-format-enforcer loguru "
    "model-hosting-container-standards msgpack msgspec omegaconf openai opentelemetry-api "
    "opentelemetry-exporter-http-transport opentelemetry-exporter-otlp opentelemetry-exporter-otlp-common "
    "opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-otlp-proto-grpc "
    "opentelemetry-exporter-otlp-proto-http opentelemetry-proto opentelemetry-sdk "
    "opentelemetry-semantic-conventions opentelemetry-semantic-conventions-ai orjson oss-harmony outlines-core "
    "partial-json-parser prometheus-client prometheus-fastapi-instrumentator protobuf psutil py-cpuinfo pybase64 "
    "pycountry pydantic pydantic-core pydantic-extra-types pydantic-settings pyjwt pystemmer python-dotenv "
    "python-json-logger python-multipart pyzmq ray referencing rpds-py sentencepiece setproctitle sniffio "
    "sse-starlette starlette supervisor tiktoken torch-c-dlpack-ext truststore typing-inspection uvicorn uvloop "
    "vllm websockets xgrammar xxhash "
)
"""What the card's Python lacks; versions are those of ``requirements/gpu.lock``."""
SOURCES = ("antlr4-python3-runtime",)
"""Pure Python that has no wheel."""
PLATFORMS = ("manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")

PROJECT = (
    "verl",
    "search_agent",
    "preprocess",
    "configs",
    "bench",
    "cmd",
    "docs/results/rates.yaml",
    "requirements",
    "setup.py",
)
_UNUSED = re.compile(
    r"""
      \.(h|hpp|hxx|cuh|cu|inl|cpp|cc|pxd|pyx|jar|js|css|map|html|png|svg|md|rst|a)$
    | (^|/)(tests?|testing/data|__pycache__|include|benchmarks|examples)/
    | ^bin/
    | ^vllm/(vllm-rs$|third_party/(deep_gemm|flashmla|fmha_sm100|tml_fa4)/)
    | ^vllm/_(flashmla|flashkda|deepselect|qutlass|moe)_.*\.so$
    | ^vllm/vllm_flash_attn/_vllm_fa2_C
    | ^ray/(jars|dashboard/client|rllib|tune|train|serve|data|air|llm|cpp|thirdparty_files/memray)/
    | ^ray/core/src/ray/(cpp|java)
    | ^pycountry/locales/
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KEPT = re.compile(r"^ray/(data|train|tune|air|serve)/(__init__|.*(constants|consts|utils))\.py$")
"""Of the packages of Ray that are left out, what its core imports. No node starts without its dashboard's agent."""


def wanted(name: str) -> bool:
    """Whether a file of the installed packages (path from there) goes along."""
    return bool(_KEPT.search(name)) or not _UNUSED.search(name)


def pins(lock: str, names: Sequence[str]) -> list[str]:
    """``name==version`` of each name. Raises KeyError on one that the lock file does not have."""
    found = {
        re.sub(r"[-_.]+", "-", match[1]).lower(): match[0]
        for match in re.finditer(r"^([A-Za-z0-9._-]+)==[^\s;\\]+", lock, re.MULTILINE)
    }
    return [found[re.sub(r"[-_.]+", "-", name).lower()] for name in names]


def slim(tree: Path, architecture: int) -> tuple[int, int]:
    """Delete what is not wanted, blank other cards' code; bytes before, and after without what is blank."""
    before = after = 0
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        before += path.stat().st_size
        if not wanted(str(path.relative_to(tree))):
            path.unlink()
            continue
        if path.suffix == ".so" and path.stat().st_size > archives.LARGE:
            library = path.read_bytes()
            if (kept := keep_only(architecture, library)) != library:
                path.write_bytes(kept)
                after -= kept.count(0) - library.count(0)
        after += path.stat().st_size
    return before, after


def install(target: Path, python: str) -> None:
    """What is needed into ``target``, for that Python, with nothing that it depends on."""
    lock = (ROOT / "requirements" / "gpu.lock").read_text()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target)]
    platforms = [f"--platform={name}_x86_64" for name in PLATFORMS]
    wheels = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    abis = [f"--abi=cp{python.replace('.', '')}", "--abi=abi3", "--abi=none"]
    subprocess.run([*pip, *wheels, *abis, *pins(lock, NEEDED.split())], check=True)
    subprocess.run([*pip, *pins(lock, SOURCES)], check=True)


def copy_project(target: Path) -> None:
    """The files of this checkout that are under version control."""
    listed = subprocess.run(["git", "ls-files", *PROJECT], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, slim, pack, and say how large it became."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.12", help="the Python of the card (default 3.12)")
    parser.add_argument("--card", type=int, default=90, help="its architecture (90: H100 and H200)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        tree = Path(name)
        install(tree / "packages", options.python)
        before, after = slim(tree / "packages", options.card)
        copy_project(tree / "project")
        print(f"packages: {before >> 20} MiB installed, {after >> 20} MiB wanted", flush=True)
        for archive in archives.write(tree, options.out):
            print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
