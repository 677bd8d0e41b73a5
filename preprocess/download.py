"""``python -m preprocess.download --save_path DIR [NAME ...]``: fetch corpora, indexes and question sets.

For each item: say how much there is to fetch, fetch what is missing, check every piece (size, and SHA-256 where the
source knows it), join ``part_*``, unpack ``.gz``. A finished file stands under its own name and nothing else does, so
the same command run again skips what is done and goes on with the rest.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.catalogue import GROUPS, ITEMS, RETRIEVAL, Item, find
from preprocess.sources import Hub, Mirror, RemoteFile, Source
from verl.errors import InfrastructureError, UserError

_CHUNK_BYTES = 16 * 2**20
_UNPACKED_RATIO = 4
"""How much larger text may be than its ``.gz``, for the check of free disk."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for one item."""

    item: Item
    files: tuple[RemoteFile, ...]
    """Pieces, in order."""
    missing: tuple[RemoteFile, ...]
    """Pieces that are not on disk yet; none if the item is finished."""
    targets: tuple[Path, ...]
    """The finished files."""
    done: bool

    @property
    def fetch_bytes(self) -> int:
        """Bytes still to be fetched."""
        return sum(file.size_bytes for file in self.missing)

    @property
    def disk_bytes(self) -> int:
        """Free disk that it takes at most: pieces and finished files stand side by side until the latter are whole."""
        if self.done:
            return 0
        ratios = [_UNPACKED_RATIO if file.path.endswith(".gz") else int(bool(self.item.joined)) for file in self.files]
        return self.fetch_bytes + sum(r * file.size_bytes for r, file in zip(ratios, self.files, strict=True))


def plan(item: Item, source: Source, save_path: Path) -> Plan:
    """Ask the source for the item's pieces and look which are here. Raises UserError if it has none of them."""
    files = tuple(source.files(item.repository, item.patterns))
    if not files:
        raise UserError(f"{item.repository}: has no file like {' or '.join(item.patterns)}; the repository has changed")
    base = save_path / item.folder
    if item.joined:
        targets: tuple[Path, ...] = (base / item.joined,)
        done = _has_size(targets[0], sum(file.size_bytes for file in files))
    else:
        targets = tuple(base / file.path.removesuffix(".gz") for file in files)
        done = all(
            target.is_file() if file.path.endswith(".gz") else _has_size(target, file.size_bytes)
            for target, file in zip(targets, files, strict=True)
        )
    pieces = _pieces_folder(item, save_path)
    missing = () if done else tuple(file for file in files if not _has_size(pieces / file.path, file.size_bytes))
    return Plan(item, files, missing, targets, done)


def carry_out(plan: Plan, source: Source, save_path: Path) -> None:
    """Fetch, check, join, unpack and put in place; the pieces are removed at the end."""
    if plan.done:
        return
    pieces = _pieces_folder(plan.item, save_path)
    for file in plan.missing:
        print(f"  {file.path} ({_size(file.size_bytes)})", flush=True)
        source.fetch(plan.item.repository, file, pieces)
    paths = [pieces / file.path for file in plan.files]
    for file, path in zip(plan.files, paths, strict=True):
        _check(file, path)
    groups = [paths] if plan.item.joined else [[path] for path in paths]
    for target, group in zip(plan.targets, groups, strict=True):
        _put_in_place(group, target)
    shutil.rmtree(pieces)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status: 2 for a mistake in what was asked, 1 if the source failed."""
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{item.name:<26}{item.about}" for item in ITEMS))
        print("\n".join(f"{name:<26}{', '.join(members)}" for name, members in GROUPS.items()))
        return 0
    source = Mirror(Path(options.mirror)) if options.mirror else Hub()
    try:
        _download(find(options.names or RETRIEVAL), source, Path(options.save_path), options.dry_run)
    except (UserError, InfrastructureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _download(items: Sequence[Item], source: Source, save_path: Path, dry_run: bool) -> None:
    plans = [plan(item, source, save_path) for item in items]
    for each in plans:
        state = "here already" if each.done else f"{_size(each.fetch_bytes)} to fetch in {len(each.missing)} file(s)"
        print(f"{each.item.name}: {state} -> {', '.join(str(target) for target in each.targets)}", flush=True)
    if dry_run:
        return
    save_path.mkdir(parents=True, exist_ok=True)
    needed, free = sum(each.disk_bytes for each in plans), shutil.disk_usage(save_path).free
    if needed > free:
        raise UserError(
            f"{save_path}: up to {_size(needed)} of disk are needed, {_size(free)} are free; "
            "name fewer items, or another --save_path"
        )
    for each in plans:
        carry_out(each, source, save_path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m preprocess.download", description="Fetch published data.")
    parser.add_argument("names", nargs="*", help=f"items or groups (see --list); default: {' '.join(RETRIEVAL)}")
    parser.add_argument("--save_path", default="data", help="folder to write to (default: data)")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--dry_run", action="store_true", help="say how much there is to fetch, and stop")
    parser.add_argument("--mirror", help="folder laid out as the hub is, for machines that cannot reach it")
    return parser


def _pieces_folder(item: Item, save_path: Path) -> Path:
    return save_path / ".pieces" / item.name


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _check(file: RemoteFile, path: Path) -> None:
    """Remove a piece that is not what the source announced, so that the next run fetches it again, and raise."""
    size = path.stat().st_size
    if size != file.size_bytes:
        path.unlink()
        raise InfrastructureError(f"{path}: {size} bytes instead of {file.size_bytes}; run the same command again")
    if file.sha256 is None:
        return
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != file.sha256:
        path.unlink()
        raise InfrastructureError(f"{path}: SHA-256 {digest} instead of {file.sha256}; run the same command again")


def _put_in_place(pieces: Sequence[Path], target: Path) -> None:
    """Write the pieces one after the other, unpacked, under the target's name once they are whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(pieces) == 1 and pieces[0].suffix != ".gz":
        pieces[0].replace(target)
        return
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("wb") as out:
        for piece in pieces:
            with gzip.open(piece) if piece.suffix == ".gz" else piece.open("rb") as data:
                shutil.copyfileobj(data, out, _CHUNK_BYTES)
    partial.replace(target)


def _size(count: int) -> str:
    return next(
        (f"{count / factor:.1f} {unit}" for factor, unit in ((2**30, "GiB"), (2**20, "MiB")) if count >= factor),
        f"{count / 2**10:.1f} KiB",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
