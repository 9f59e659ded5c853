"""Imports that are killed, run out of disk, lack clips or find broken ones."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pretraining.corpus import CorpusError, open_corpus
from pretraining.corpus_writer import write_corpus
from tests.child_processes import survivors_of_a_kill
from tests.pretraining.small_corpus import encoded, small_corpus, small_listing, sound

IMPORT_STUCK_AT_THE_FOURTH = """
import sys, time
from pathlib import Path
from dataclasses import replace
from pretraining.corpus_writer import write_corpus
from tests.pretraining.small_corpus import small_listing

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    listing = small_listing(folder)
    read = []
    def stuck(place):
        time.sleep(600 if len(read) == 3 else 0)
        read.append(place)
        return Path(place).read_bytes()
    write_corpus(replace(listing, read=stuck), folder / "corpus", shard_clips=1)
"""

STUCK_IMPORT = """
import sys, time
from dataclasses import replace
from pathlib import Path
from pretraining.corpus_writer import write_corpus
from tests.pretraining.small_corpus import small_listing

def read(place):
    time.sleep(600)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    listing = replace(small_listing(folder), read=read)
    write_corpus(listing, folder / "corpus", shard_clips=1, n_workers=2)
"""


def begun(folder: Path) -> list[Path]:
    return sorted((folder / "corpus.part").glob("corpus-train*"))


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", IMPORT_STUCK_AT_THE_FOURTH, str(tmp_path)])
    limit = time.monotonic() + 60
    while len(begun(tmp_path)) < 3 and time.monotonic() < limit:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    there = {path.name: path.stat().st_mtime_ns for path in begun(tmp_path)}
    assert len(there) == 3 and not (tmp_path / "corpus").exists()
    begun(tmp_path)[0].write_bytes(b"cut")  # as a power failure might leave it
    done: list[tuple[int, int]] = []
    listing = small_listing(tmp_path)
    out = write_corpus(
        listing, tmp_path / "corpus", shard_clips=1, progress=lambda *n: done.append(n)
    )
    noted = done[0][0] + 1
    assert noted in (2, 3)  # the last may be there and not yet noted
    assert done[-1] == (5, 5)
    kept = [name for name, when in there.items() if (out / name).stat().st_mtime_ns == when]
    assert sorted(there)[1:noted] == sorted(kept)
    whole = small_corpus(tmp_path / "whole", shard_clips=1)
    corpus = open_corpus(out)
    assert corpus.sha256 == whole.sha256
    assert [corpus[i] for i in range(5)] == [whole[i] for i in range(5)]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in whole.folder.iterdir()
    )
    assert not (tmp_path / "corpus.part").exists()


def test_an_import_of_something_else_does_not_go_on(tmp_path: Path) -> None:
    listing = small_listing(tmp_path)

    def fail(place: str) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(replace(listing, read=fail), tmp_path / "corpus")
    changed = replace(listing, labels=("Bark", "Bell", "Talk"))
    with pytest.raises(CorpusError, match="begun with other clips, labels or settings"):
        write_corpus(changed, tmp_path / "corpus")
    elsewhere = small_listing(tmp_path / "elsewhere", seconds=0.7)
    with pytest.raises(CorpusError, match="other audio than .*elsewhere/audio/clip0_0.flac") as no:
        write_corpus(elsewhere, tmp_path / "corpus")
    assert "\n" not in str(no.value)
    write_corpus(listing, tmp_path / "corpus")
    with pytest.raises(CorpusError, match="is there already"):
        write_corpus(listing, tmp_path / "corpus")


@pytest.mark.parametrize("limit", [20_000, 70_000])
def test_a_full_disk_leaves_nothing_half(tmp_path: Path, limit: int) -> None:
    listing = small_listing(tmp_path, seconds=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(CorpusError, match="cannot be written .*same import goes on") as caught:
            write_corpus(listing, tmp_path / "corpus", shard_clips=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()
    left = [path for path in (tmp_path / "corpus.part").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"plan.json"}
    write_corpus(listing, tmp_path / "corpus", shard_clips=2)
    assert len(open_corpus(tmp_path / "corpus")) == 5


def test_nothing_is_said_to_be_kept_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match=r"file/new: cannot be written \([^)]+\)$"):
        write_corpus(small_listing(tmp_path), tmp_path / "file" / "new")


def test_missing_and_broken_clips_are_listed(tmp_path: Path) -> None:
    listing = small_listing(tmp_path, n_clips=6)
    audio = tmp_path / "audio"
    (audio / "clip1_0.flac").unlink()  # since it was listed
    (audio / "clip2_0.flac").write_bytes(b"no audio at all")
    (audio / "clip4_0.flac").write_bytes(b"")
    listing = replace(listing, missing=("gone_0",))
    corpus = open_corpus(write_corpus(listing, tmp_path / "corpus", shard_clips=2))
    assert list(corpus.names) == ["clip0_0", "clip3_0", "clip5_0"]
    assert [corpus[i].name for i in range(3)] == list(corpus.names)
    assert corpus[1].events == ((0.1, 0.23, 0),)
    assert corpus.manifest["missing"] == ["gone_0", "clip1_0"]
    assert sorted(corpus.manifest["broken"]) == ["clip2_0", "clip4_0"]
    assert "empty file" in corpus.manifest["broken"]["clip4_0"]
    assert corpus.manifest["n_clips"] == 3


def test_a_shard_without_any_clip_is_no_harm(tmp_path: Path) -> None:
    listing = small_listing(tmp_path, n_clips=5)
    for i in (2, 3):
        (tmp_path / f"audio/clip{i}_0.flac").unlink()
    corpus = open_corpus(write_corpus(listing, tmp_path / "corpus", shard_clips=2))
    assert [corpus[i].name for i in range(3)] == ["clip0_0", "clip1_0", "clip4_0"]


def test_no_clip_at_all_is_an_error(tmp_path: Path) -> None:
    listing = small_listing(tmp_path, n_clips=2)
    for path in (tmp_path / "audio").iterdir():
        path.write_bytes(b"no audio")
    with pytest.raises(CorpusError, match="none of 2 clips can be read, the first: .*clip0_0"):
        write_corpus(listing, tmp_path / "corpus")


def test_files_cut_short_are_broken(tmp_path: Path) -> None:
    listing = small_listing(tmp_path, n_clips=2, seconds=2)
    path = tmp_path / "audio" / "clip1_0.flac"
    path.write_bytes(encoded(sound(2), "WAV")[:-20_000])
    corpus = open_corpus(write_corpus(listing, tmp_path / "corpus"))
    assert list(corpus.manifest["broken"]) == ["clip1_0"]
    assert "truncated" in corpus.manifest["broken"]["clip1_0"]


@pytest.mark.slow
def test_workers_write_the_same(tmp_path: Path) -> None:
    one = small_corpus(tmp_path / "one", shard_clips=2)
    two = small_corpus(tmp_path / "two", shard_clips=2, n_workers=2)
    assert one.sha256 == two.sha256
    kept = ("n_clips", "hours", "classes", "missing", "broken", "labels")
    for name in kept:
        assert one.manifest[name] == two.manifest[name], name
    assert [two[i] for i in range(5)] == [one[i] for i in range(5)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_import(tmp_path: Path) -> None:
    small_listing(tmp_path)
    path = tmp_path / "stuck_import.py"
    path.write_text(STUCK_IMPORT)
    children, left = survivors_of_a_kill(path, str(tmp_path))
    assert children and not left


def test_notes_are_no_part_of_a_corpus(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    assert not (corpus.folder / "notes").exists()
    assert json.loads((corpus.folder / "dataset_info.json").read_text())["name"] == "corpus"
