"""The archives for a card: which files go along, which device code stays, how they are split; small made files."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu import archives
from bench.gpu.bundle import NEEDED, SOURCES, pins, slim, wanted
from bench.gpu.fatbin import entries, keep_only
from bench.harness import ROOT


def fatbin(*codes: tuple[int, int, bytes]) -> bytes:
    """A fat binary of entries (kind, architecture, code)."""
    inner = b"".join(
        struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(code), 0, 0, 0, 0, architecture).ljust(64, b"\1") + code
        for kind, architecture, code in codes
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(inner)) + inner


def test_machine_code_of_other_cards_is_blanked_in_place_and_ptx_stays() -> None:
    one = fatbin((2, 80, b"a" * 40), (2, 90, b"b" * 24), (1, 80, b"c" * 16))
    two = fatbin((2, 100, b"d" * 8), (2, 90, b"e" * 8))
    library = b"head" + one + b"between" + two + b"tail"
    kept = keep_only(90, library)
    assert len(kept) == len(library)
    assert kept == library.replace(b"a" * 40, bytes(40)).replace(b"d" * 8, bytes(8))
    assert [(kind, architecture) for kind, architecture, _, _ in entries(library)] == [
        (2, 80),
        (2, 90),
        (1, 80),
        (2, 100),
        (2, 90),
    ]


def test_what_only_looks_like_a_fat_binary_is_left_alone() -> None:
    magic = struct.pack("<I", 0xBA55ED50)
    cut = fatbin((2, 80, b"x" * 100))[:-50]
    unknown = fatbin((7, 80, b"y" * 30), (2, 80, b"z" * 30))
    for library in (b"text " + magic + b" text", cut, magic, unknown):
        assert keep_only(90, library) == library
    real = fatbin((2, 80, b"x" * 30))
    assert keep_only(90, magic + b"....." + real).endswith(bytes(30))


@given(st.lists(st.integers(0, 100), max_size=40))
def test_every_unit_is_in_one_archive_and_no_archive_is_too_large(sizes: list[int]) -> None:
    packed = archives.pack(sizes, limit=100)
    assert sorted(unit for archive in packed for unit in archive) == list(range(len(sizes)))
    assert all(sum(sizes[unit] for unit in archive) <= 100 for archive in packed)
    assert len(packed) <= 2 * sum(sizes) / 100 + 1  # any two of them are more than one full


def test_a_unit_larger_than_an_archive_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        archives.pack([5, 101], limit=100)


def test_a_large_file_is_a_unit_alone_and_small_ones_go_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGE", 100)
    monkeypatch.setattr(archives, "_UNIT", 50)
    sizes = {"p/a/x": 20, "p/a/y": 20, "p/a/z": 20, "p/b/x": 10, "p/a/big.so": 100}
    assert archives.units(sizes) == [["p/a/big.so"], ["p/a/x", "p/a/y"], ["p/a/z"], ["p/b/x"]]


def test_archives_unpack_to_the_same_files_each_alone(tmp_path: Path) -> None:
    tree, draw = tmp_path / "tree", random.Random(0)
    for name in ("packages/a/one.py", "packages/a/two.so", "project/b/three.py", "top/four"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(draw.randbytes(20_000))
    (tree / "packages" / "a" / "run.sh").write_text("#!/bin/sh\n")
    (tree / "packages" / "a" / "run.sh").chmod(0o755)
    made = archives.write(tree, tmp_path / "out", limit=70_000, workers=1)
    assert len(made) == 2
    assert all(path.stat().st_size <= 70_000 for path in made)
    for path in made:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "there", filter="tar")
    files = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    there = tmp_path / "there"
    assert files == {path.relative_to(there): path.read_bytes() for path in there.rglob("*") if path.is_file()}
    assert (there / "packages/a/run.sh").stat().st_mode & 0o100


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("vllm/_C_stable_libtorch.abi3.so", True),
        ("vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", True),
        ("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", False),
        ("vllm/_moe_C_stable_libtorch.abi3.so", False),
        ("vllm/_flashmla_C.abi3.so", False),
        ("vllm/vllm-rs", False),
        ("vllm/third_party/deep_gemm/_C_extension.abi3.so", False),
        ("vllm/third_party/pynvml.py", True),
        ("vllm/config/model.py", True),
        ("vllm/entrypoints/serve/instrumentator/static/swagger-ui-bundle.js", False),
        ("vllm/kernels/helion/configs/silu_mul_fp8/nvidia_h200.json", True),
        ("vllm-0.32.0.dist-info/METADATA", True),
        ("ray/_raylet.so", True),
        ("ray/core/src/ray/raylet/raylet", True),
        ("ray/rllib/algorithms/ppo.py", False),
        ("ray/dashboard/consts.py", True),
        ("ray/jars/ray_dist.jar", False),
        ("ray/include/ray/api.h", False),
        ("pydantic/main.py", True),
        ("hydra/test_utils/__init__.py", True),
    ],
)
def test_which_files_go_along(name: str, goes: bool) -> None:
    assert wanted(name) is goes


def test_slimming_deletes_what_is_not_wanted_and_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGE", 10)
    library = fatbin((2, 80, b"a" * 500), (2, 90, b"b" * 500))
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "_C_stable_libtorch.abi3.so").write_bytes(library)
    (tmp_path / "vllm" / "vllm-rs").write_bytes(b"x" * 1000)
    before, after = slim(tmp_path, 90)
    assert before == len(library) + 1000
    assert after == len(library) - 500
    assert not (tmp_path / "vllm" / "vllm-rs").exists()
    assert b"a" not in (tmp_path / "vllm" / "_C_stable_libtorch.abi3.so").read_bytes()


def test_every_package_that_goes_along_is_pinned_by_the_lock_file() -> None:
    lock = (ROOT / "requirements" / "gpu.lock").read_text()
    found = pins(lock, [*NEEDED.split(), *SOURCES])
    assert "vllm==0.32.0" in found
    assert len(found) == len(NEEDED.split()) + len(SOURCES)
    with pytest.raises(KeyError):
        pins(lock, ["no-such-package"])


def test_a_gpu_install_has_what_vllm_imports_whenever_an_engine_starts_on_a_card() -> None:
    """``vllm.model_executor.warmup`` imports a module that needs torchvision; the CPU build of vLLM never does."""
    lock = (ROOT / "requirements" / "gpu.lock").read_text().splitlines()
    assert any(line.startswith("torchvision==") for line in lock)


def test_the_commands_for_a_card_import_with_the_oldest_torch_that_one_may_have() -> None:
    code = (
        "import torch.nn.functional as F; del F.linear_cross_entropy; "  # what 2.11 lacks
        "import bench.gpu.learner, bench.gpu.engine, bench.gpu.loop, bench.gpu.two"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
