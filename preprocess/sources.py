"""Where published files come from: the Hugging Face Hub, or a folder that mirrors it.

A mirror is laid out as the hub is (``<folder>/<owner>/<repository>/<file>``): what a machine without a way to the hub
is given. Both say the size and, where it is known, the SHA-256 of a file before it is fetched; a fetch that was
stopped goes on where it can, and leaves a file under its own name only once it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from verl.errors import InfrastructureError, UserError


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository."""

    path: str
    """Within the repository."""
    size_bytes: int
    sha256: str | None = None
    """None where the source does not know it."""


class Source(Protocol):
    """Something that holds repositories of files."""

    def files(self, repository: str, patterns: tuple[str, ...]) -> list[RemoteFile]:
        """The files that match one of the patterns, by path.

        Raises UserError if there is no such repository, InfrastructureError if it cannot be reached.
        """
        ...

    def fetch(self, repository: str, file: RemoteFile, folder: Path) -> Path:
        """Bring one file to ``folder / file.path``; a partial one from before is used if it can be."""
        ...


class Hub:
    """The Hugging Face Hub; reads the usual settings (``HF_ENDPOINT``, ``HF_TOKEN``, proxies) from the environment."""

    def files(self, repository: str, patterns: tuple[str, ...]) -> list[RemoteFile]:
        """See ``Source``."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with _hub_errors(repository):
            entries = list(HfApi().list_repo_tree(repository, recursive=True, repo_type="dataset"))
        found = [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile) and _matches(entry.path, patterns)
        ]
        return sorted(found, key=lambda file: file.path)

    def fetch(self, repository: str, file: RemoteFile, folder: Path) -> Path:
        """See ``Source``."""
        from huggingface_hub import hf_hub_download

        with _hub_errors(repository):
            return Path(hf_hub_download(repository, file.path, repo_type="dataset", local_dir=folder))


@dataclass(frozen=True, slots=True)
class Mirror:
    """A local folder with the hub's layout."""

    root: Path

    def files(self, repository: str, patterns: tuple[str, ...]) -> list[RemoteFile]:
        """See ``Source``."""
        base = self.root / repository
        if not base.is_dir():
            raise UserError(f"{base}: no such folder; a mirror holds <owner>/<repository>/<file>")
        paths = sorted(path for path in base.rglob("*") if path.is_file())
        named = [(path.relative_to(base).as_posix(), path) for path in paths]
        return [RemoteFile(name, path.stat().st_size) for name, path in named if _matches(name, patterns)]

    def fetch(self, repository: str, file: RemoteFile, folder: Path) -> Path:
        """See ``Source``."""
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        shutil.copyfile(self.root / repository / file.path, partial)
        partial.replace(target)
        return target


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    # What its HTTP client raises: the library has changed that client before, and its own error is one of the client's.
    client_errors = tuple(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    try:
        yield
    except RepositoryNotFoundError as error:
        raise UserError(f"{repository}: the hub has no such dataset, or it asks for a token (HF_TOKEN)") from error
    except (HfHubHTTPError, *client_errors, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InfrastructureError(f"{repository}: {reason}; run the same command again to go on") from error
