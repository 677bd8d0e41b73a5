"""Downloads: what is fetched is whole, joined and unpacked; what is here is not fetched again."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.hf_api import RepoFile

from preprocess import download
from preprocess.catalogue import ITEMS, Item, find
from preprocess.sources import Hub, Mirror, RemoteFile
from search_agent.data.benchmark import QUESTIONS
from verl.cluster.processes import free_port
from verl.errors import InfrastructureError, UserError

INDEX = Item("index", "an index in parts", "someone/index", ("part_*",), joined="whole.index")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    files = {
        "someone/index/part_ab": b"second",
        "someone/index/part_aa": b"first-",
        "someone/index/README.md": b"not asked for",
        "PeterJinGo/wiki-18-corpus/wiki-18.jsonl.gz": gzip.compress(b'{"id": "0"}\n'),
        "RUC-NLPIR/FlashRAG_datasets/nq/test.jsonl": b"{}\n",
        "RUC-NLPIR/FlashRAG_datasets/popqa/test.jsonl": b"{}\n",
    }
    for name, content in files.items():
        path = tmp_path / "mirror" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "mirror"


def test_parts_are_joined_in_order_and_only_the_whole_file_is_left(mirror: Path, tmp_path: Path) -> None:
    source, save = Mirror(mirror), tmp_path / "data"
    download.carry_out(download.plan(INDEX, source, save), source, save)
    assert [p.relative_to(save).as_posix() for p in save.rglob("*") if p.is_file()] == ["whole.index"]
    assert (save / "whole.index").read_bytes() == b"first-second"
    assert download.plan(INDEX, source, save).done


def test_a_stopped_download_fetches_only_what_is_missing(mirror: Path, tmp_path: Path) -> None:
    source, save = Mirror(mirror), tmp_path / "data"
    first = download.plan(INDEX, source, save)
    source.fetch(INDEX.repository, first.files[0], save / ".pieces" / INDEX.name)
    again = download.plan(INDEX, source, save)
    assert [file.path for file in again.missing] == ["part_ab"]
    assert (first.fetch_bytes, again.fetch_bytes) == (12, 6)
    download.carry_out(again, source, save)
    assert (save / "whole.index").read_bytes() == b"first-second"


def test_the_command_unpacks_a_corpus_and_skips_it_the_second_time(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--save_path", str(tmp_path / "data"), "--mirror", str(mirror), "wiki-18-corpus", "nq"]
    assert download.main(arguments) == 0
    assert (tmp_path / "data" / "wiki-18.jsonl").read_bytes() == b'{"id": "0"}\n'
    assert (tmp_path / "data" / "flashrag" / "nq" / "test.jsonl").read_bytes() == b"{}\n"
    assert not (tmp_path / "data" / "flashrag" / "popqa").exists()
    assert "to fetch in 1 file(s)" in capsys.readouterr().out
    assert download.main(arguments) == 0
    assert capsys.readouterr().out.count("here already") == 2


def test_a_dry_run_says_the_size_and_writes_nothing(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--save_path", str(tmp_path / "data"), "--mirror", str(mirror), "--dry_run", "nq"]
    assert download.main(arguments) == 0
    assert "KiB to fetch" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_the_list_names_every_item(capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(item.name in said for item in ITEMS)


def test_a_wrong_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main(["hotpotq"]) == 2
    assert "hotpotq: no such item; did you mean hotpotqa?" in capsys.readouterr().err
    assert [item.name for item in find(["questions", "nq"])] == list(QUESTIONS)


@pytest.mark.parametrize("sha256", [hashlib.sha256(b"other!").hexdigest(), None])
def test_a_piece_that_is_not_what_was_announced_is_removed(
    mirror: Path, tmp_path: Path, sha256: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 6 if sha256 else 7
    files = [RemoteFile("part_aa", size, sha256)]
    monkeypatch.setattr(Mirror, "files", lambda self, repository, patterns: files)
    source, save = Mirror(mirror), tmp_path / "data"
    with pytest.raises(InfrastructureError, match="instead of"):
        download.carry_out(download.plan(INDEX, source, save), source, save)
    assert not (save / ".pieces" / "index" / "part_aa").exists()
    assert not (save / "whole.index").exists()


def test_too_little_disk_is_said_before_anything_is_fetched(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("preprocess.download.shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    assert download.main(["--save_path", str(tmp_path / "data"), "--mirror", str(mirror), "nq"]) == 2
    assert "of disk are needed" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.jsonl"))


def test_a_repository_without_the_expected_files_is_named(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no file like gone"):
        download.plan(Item("x", "", "someone/index", ("gone",)), Mirror(mirror), tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Mirror(mirror).files("someone/else", ("*",))


def test_the_hub_gives_sizes_and_checksums_and_fetches_to_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        RepoFile(path="part_aa", size=6, oid="x", lfs={"size": 6, "oid": "sum", "pointerSize": 1}),
        RepoFile(path="README.md", size=1, oid="y"),
    ]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda self, name, **options: entries)
    assert Hub().files("someone/index", ("part_*",)) == [RemoteFile("part_aa", 6, "sum")]

    def fetch(repository: str, path: str, *, repo_type: str, local_dir: Path) -> str:
        assert (repository, repo_type) == ("someone/index", "dataset")
        return str(local_dir / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert Hub().fetch("someone/index", RemoteFile("part_aa", 6), tmp_path) == tmp_path / "part_aa"


def test_an_unreachable_hub_is_an_outage_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    assert download.main(["--save_path", str(tmp_path), "nq"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: RUC-NLPIR/FlashRAG_datasets: ")
    assert last.endswith("; run the same command again to go on")
