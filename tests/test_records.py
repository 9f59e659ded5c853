"""The cache folder, and its record of the sha256 of what was loaded."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from pathlib import Path

import pytest

from hear_pretrainedsed.records import cache_folder, record_sha256

NAME = "BEATs_ssl.pt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEAR_PRETRAINEDSED_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HEAR_PRETRAINEDSED_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hear_pretrainedsed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hear_pretrainedsed"


def test_change_of_a_published_file_warns_at_each_load(cache: Path) -> None:
    path = put(cache / NAME, b"a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert record_sha256(path).recorded is None
        assert record_sha256(path).recorded == sha256_of(b"a")
    mtime_ns = path.stat().st_mtime_ns
    path.write_bytes(b"b")
    os.utime(path, ns=(mtime_ns, mtime_ns))  # as if within one tick of the clock
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"was {sha256_of(b'a')}, is {sha256_of(b'b')}"):
            assert record_sha256(path).sha256 == sha256_of(b"b")


def test_change_of_a_file_elsewhere_is_told_once(tmp_path: Path, cache: Path) -> None:
    path = put(tmp_path / "runs" / NAME, b"a")
    assert record_sha256(path).key == str(path)
    path.write_bytes(b"b")
    with pytest.warns(UserWarning, match="was .*, is "):
        record_sha256(path)
    assert record_sha256(path).recorded == sha256_of(b"b")
    assert record_sha256(put(cache / NAME, b"c")).recorded is None


def test_equal_files_warn(cache: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record_sha256(put(cache / "M2D_ssl.pt", b"a"))
        record_sha256(put(tmp_path / "M2D_ssl.pt", b"a"))  # a copy under its own name
    with pytest.warns(UserWarning, match="M2D_weak.pt has the bytes of M2D_ssl.pt"):
        assert "M2D_ssl.pt" in record_sha256(put(cache / "M2D_weak.pt", b"a")).twins


def test_hash_is_cached_by_size_and_mtime(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(cache / NAME, b"a")
    os.utime(path, (1e9, 1e9))
    record = record_sha256(path)
    monkeypatch.setattr(hashlib, "file_digest", None)  # not to be called
    assert record_sha256(path).sha256 == record.sha256 == sha256_of(b"a")
    path.write_bytes(b"b")
    with pytest.raises(TypeError):
        record_sha256(path)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b'{"a": {"b": 1}}', b"\xff", b""])
def test_unusable_records_are_set_aside(cache: Path, content: bytes) -> None:
    put(cache / "sha256.json", content)
    path = put(cache / NAME, b"a")
    with pytest.warns(UserWarning, match="sha256.json was unusable: moved to "):
        record_sha256(path)
    assert (cache / "sha256.json.unusable").read_bytes() == content
    assert record_sha256(path).recorded == sha256_of(b"a")


def test_records_that_cannot_be_written(cache: Path, tmp_path: Path) -> None:
    put(cache, b"a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot record the sha256 of"):
        assert record_sha256(put(tmp_path / NAME, b"a")).sha256 == sha256_of(b"a")


def test_records_of_threads_are_all_kept(cache: Path) -> None:
    paths = [put(cache / f"{i}.pt", bytes([i])) for i in range(12)]
    threads = [threading.Thread(target=record_sha256, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads((cache / "sha256.json").read_text())) == sorted(p.name for p in paths)
