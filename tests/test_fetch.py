"""Downloads against a scripted server on 127.0.0.1, and the record of what was loaded."""

import errno
import hashlib
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hear_pretrainedsed.fetch import FetchError, cache_folder, fetch, find, record_sha256

module = sys.modules[fetch.__module__]

NAME = "BEATs_ssl.pt"
CONTENT = random.Random(0).randbytes(300_000)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass(frozen=True)
class Reply:
    """What the server does with one GET."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    date: str | None = None
    status: int | None = None  # instead of the file
    kind: str = "application/octet-stream"
    ranges: bool = True
    if_range: bool = True  # False: sends the range even when If-Range names another version
    shift_bytes: int = 0  # a partial answer begins this far from what was asked
    claim: int | None = None  # Content-Length, if a lie; -1: none
    cut: int | None = None  # close after this many body bytes
    reset: bool = False  # close with a TCP reset
    stall: bool = False  # then keep the connection open and say nothing


class Server(ThreadingHTTPServer):
    """Answers the GETs by the replies in turn, and any further one by the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"
        self.replies = [Reply()]
        self.ranges: list[str | None] = []  # Range header of each GET
        self.released = threading.Event()
        self.before_each_block: Callable[[], None] = lambda: None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers["Range"])
        reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        if self.path == "/moved" or reply.status:
            self.send_response(reply.status or 302)
            self.send_header("Location", server.url)
            body, n_claimed = (b"", 0) if self.path == "/moved" else (PAGE, len(PAGE))
        else:
            body, n_claimed = self.begin(reply)
        if n_claimed >= 0:
            self.send_header("Content-Length", str(n_claimed))
        self.send_header("Connection", "close")
        self.end_headers()
        self.send(reply, body)

    def begin(self, reply: Reply) -> tuple[bytes, int]:
        """Send status and headers; return the body and the length to announce."""
        n_total = len(reply.content)
        same = self.headers["If-Range"] in (reply.etag, reply.date) or not reply.if_range
        start = None
        if self.headers["Range"] and reply.ranges and same:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start is not None and start >= n_total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{n_total}")
            return b"", 0
        self.send_response(200 if start is None else 206)
        start = 0 if start is None else start + reply.shift_bytes
        self.send_header("Content-Range", f"bytes {start}-{n_total - 1}/{n_total}")
        self.send_header("Content-Type", reply.kind)
        for header, value in (("ETag", reply.etag), ("Last-Modified", reply.date)):
            if value:
                self.send_header(header, value)
        body = reply.content[start:]
        return body, len(body) if reply.claim is None else reply.claim

    def send(self, reply: Reply, body: bytes) -> None:
        body = body if reply.cut is None else body[: reply.cut]
        for i in range(0, len(body), 50_000):
            self.server.before_each_block()
            self.wfile.write(body[i : i + 50_000])
        if reply.stall:
            self.server.released.wait(10)
        if reply.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEAR_PRETRAINEDSED_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    return tmp_path / "cache"


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def child(url: str) -> subprocess.Popen[bytes]:
    """Start a process that fetches; the module alone, as the package would import torch."""
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('alone', {module.__file__!r})\n"
        "alone = sys.modules['alone'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(alone)\n"
        f"alone.fetch({NAME!r}, {url!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)


def wait_for_part(cache: Path, n_bytes: int) -> None:
    part = cache / f"{NAME}.part"
    end = time.monotonic() + 10
    while not (part.exists() and part.stat().st_size >= n_bytes):
        assert time.monotonic() < end, "the child downloaded nothing"
        time.sleep(0.01)


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HEAR_PRETRAINEDSED_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hear_pretrainedsed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hear_pretrainedsed"


def test_whole_download(server: Server, cache: Path) -> None:
    path = fetch(NAME, server.url, sha256_of(CONTENT).upper())
    assert (path, path.read_bytes()) == (cache / NAME, CONTENT)
    assert leftovers(cache) == [NAME]
    assert fetch(NAME, server.url) == path
    assert server.ranges == [None]


def test_redirect_is_followed_with_its_range(server: Server) -> None:
    server.replies = [Reply(), Reply(cut=1000), Reply()]
    moved = server.url.replace(NAME, "moved")
    assert fetch(NAME, moved).read_bytes() == CONTENT
    assert server.ranges == [None, None, "bytes=1000-", "bytes=1000-"]


# A transfer that is told in one line: the replies, and the Range of each GET that must follow.
OTHER = random.Random(1).randbytes(300_000)
CUT = Reply(cut=100_000)
DATED = {"etag": None, "date": "Sat, 21 Nov 2026 07:00:00 GMT"}
TRANSFERS = {
    "cut": ([CUT, Reply()], [None, 100_000]),
    "cut every 40000 bytes": ([Reply(cut=40_000)], [None, *range(40_000, 300_000, 40_000)]),
    "stalls": ([Reply(cut=100_000, stall=True), Reply()], [None, 100_000]),
    "date only": ([Reply(cut=100_000, **DATED), Reply(**DATED)], [None, 100_000]),
    "weak ETag": ([Reply(etag='W/"a"', cut=9), Reply(etag='W/"a"')], [None, None]),
    "no validator": ([Reply(etag=None, cut=9), Reply(etag=None)], [None, None]),
    "no ranges": ([CUT, Reply(ranges=False)], [None, 100_000]),
    "changed": ([Reply(OTHER, '"two"', cut=100_000), Reply()], [None, 100_000]),
    "changed, If-Range ignored": (
        [Reply(OTHER, '"two"', cut=100_000), Reply(if_range=False)], [None, 100_000, None]),
    "changed length, same ETag": ([Reply(OTHER[:-9], cut=100_000), Reply()], [None, 100_000, None]),
    "wrong part": ([CUT, Reply(shift_bytes=7), Reply()], [None, 100_000, None]),
    "416": ([CUT, Reply(status=416), Reply()], [None, 100_000, None]),
    "announces too much": ([Reply(claim=400_000), Reply()], [None, 300_000, None]),
    "no length": ([Reply(claim=-1)], [None]),
    "500, then 503": ([Reply(status=500), Reply(status=503), Reply()], [None] * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfer_ends_with_the_right_bytes(server: Server, cache: Path, name: str) -> None:
    replies, offsets = TRANSFERS[name]
    server.replies = list(replies)
    timeout_s = 0.5 if name == "stalls" else 30.0
    assert fetch(NAME, server.url, timeout_s=timeout_s).read_bytes() == CONTENT
    assert server.ranges == [None if n is None else f"bytes={n}-" for n in offsets]
    assert leftovers(cache) == [NAME]


def test_reset_connection(server: Server) -> None:
    server.replies = [Reply(cut=150_000, reset=True), Reply(cut=0, reset=True), Reply()]
    assert fetch(NAME, server.url).read_bytes() == CONTENT


ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("data.pkl", CONTENT)
# Name: replies, what the error says, what is left in the folder, GETs.
FAILURES = {
    "404": ([Reply(status=404)], "answered 404 Not Found", [], 1),
    "page": ([Reply(PAGE)], "sent a web page", [], 1),
    "page by its type": ([Reply(b"hello", kind="text/html")], "sent a web page", [], 1),
    "page when resumed": ([CUT, Reply(PAGE, '"p"')], "web page", [".part", ".part.json"], 2),
    "wrong bytes": ([Reply(OTHER)], f"sha256 is {sha256_of(OTHER)} and should be ", [], 1),
    "announces too little": ([Reply(ZIP.getvalue(), claim=9999)], "the file is cut off", [], 1),
    "empty": ([Reply(b"")], "cut off", [], 1),
    "always 500": ([Reply(status=500)], "answered 500", [], 5),
    "always too much": ([Reply(claim=400_000, ranges=False)], "300000 of 400000 bytes", None, 5),
    "no ranges, cut later each time": (
        [Reply(ranges=False, cut=100_000 * i // 5) for i in range(1, 15)], "120000 of", None, 6),
    "dead after a while": ([CUT, Reply(cut=0)], r"100000 bytes are kept", None, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_one_line(server: Server, cache: Path, name: str) -> None:
    replies, says, left, n_gets = FAILURES[name]
    server.replies = list(replies)
    wanted = sha256_of(CONTENT) if name == "wrong bytes" else None
    with pytest.raises(FetchError, match=says) as caught:
        fetch(NAME, server.url, wanted)
    line = str(caught.value)
    assert "\n" not in line and server.url in line and NAME in line and str(cache) in line
    assert wanted is None or wanted in line
    assert not (cache / NAME).exists()
    assert left is None or leftovers(cache) == [NAME + suffix for suffix in left]
    assert len(server.ranges) == n_gets


def test_next_call_continues(server: Server, cache: Path) -> None:
    server.replies = [CUT, Reply(status=500)]
    with pytest.raises(FetchError, match="100000 bytes are kept"):
        fetch(NAME, server.url)
    server.replies = [Reply()]
    assert fetch(NAME, server.url).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=100000-"


ELSEWHERE = json.dumps({"url": "http://else/", "validator": '"one"', "n_bytes": 300_000})


@pytest.mark.parametrize("spoil", ["{", "[]", "{}", ELSEWHERE, None])
def test_part_of_unknown_source_is_not_continued(
    server: Server, cache: Path, spoil: str | None
) -> None:
    put(cache / f"{NAME}.part", OTHER[:1000])
    if spoil is not None:
        put(cache / f"{NAME}.part.json", spoil.encode())
    assert fetch(NAME, server.url).read_bytes() == CONTENT
    assert server.ranges == [None]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_leaves_a_part_that_goes_on(
    server: Server, cache: Path, how: signal.Signals
) -> None:
    server.replies = [Reply(cut=1_000, stall=True), Reply()]
    process = child(server.url)
    wait_for_part(cache, 1_000)
    process.send_signal(how)
    assert process.wait(10) == -how
    assert not (cache / NAME).exists()
    assert fetch(NAME, server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


def test_killed_between_last_byte_and_move(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        fetch(NAME, server.url)
    assert fetch(NAME, server.url).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_two_processes_download_once(server: Server, cache: Path) -> None:
    server.replies = [Reply(cut=200_000, stall=True), Reply()]
    processes = [child(server.url)]
    wait_for_part(cache, 200_000)
    processes += [child(server.url), child(server.url)]
    time.sleep(0.4)  # for these two to reach the lock; if they are slower the test is only easier
    assert len(server.ranges) == 1
    server.released.set()
    assert [process.wait(20) for process in processes] == [0, 0, 0]
    assert server.ranges == [None, "bytes=200000-"]
    assert (cache / NAME).read_bytes() == CONTENT


def test_final_name_appears_whole(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    server.before_each_block = lambda: seen.append((cache / NAME).exists())
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        seen.append("fsync")
        real_fsync(descriptor)

    def move(source: Path, target: Path) -> None:
        seen.append((source.name, target.name, source.read_bytes() == CONTENT))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", move)
    fetch(NAME, server.url)
    assert seen == [False] * 6 + ["fsync", (f"{NAME}.part", NAME, True)]


def test_disk_full(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile(io.FileIO):
        def write(self, block: bytes) -> int:
            if self.tell() < 100_000:
                return super().write(block[:10_000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_open(path: Path, mode: str) -> io.BufferedWriter | io.IOBase:
        small = mode == "ab" and path.suffix == ".part"
        return io.BufferedWriter(FullFile(path, mode)) if small else open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", full_open, raising=False)
        with pytest.raises(FetchError, match="No space left on device.*free some room") as caught:
            fetch(NAME, server.url)
    assert NAME in str(caught.value) and str(cache) in str(caught.value)
    assert (cache / f"{NAME}.part").read_bytes() == CONTENT[:100_000]
    assert not (cache / NAME).exists()
    assert fetch(NAME, server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(1, 6000), max_size=8),
    n_old=st.integers(0, 4),
    n_bytes=st.integers(1, 20_000),
)
def test_any_cuts_give_one_whole_file(
    server: Server, cuts: list[int], n_old: int, n_bytes: int
) -> None:
    old, new = OTHER[:n_bytes], CONTENT[:n_bytes]
    server.replies = [Reply(old, '"two"', cut=cut) for cut in cuts[:n_old]]
    server.replies += [Reply(new, cut=cut) for cut in cuts[n_old:]] + [Reply(new)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEAR_PRETRAINEDSED_HOME", folder)
        got = fetch(NAME, server.url).read_bytes()
    # The old version is right where its last byte came before the change.
    assert got == (old if sum(cuts[:n_old]) >= n_bytes else new)


def test_file_put_there_by_hand(server: Server, cache: Path) -> None:
    assert find(NAME) is None
    path = put(cache / NAME, OTHER)
    for own in (f"{NAME}.part", f"{NAME}.part.json", "sha256.json"):
        put(cache / own, b"x")
        assert find(own) is None
    assert find(NAME) == fetch(NAME, None) == fetch(NAME, server.url, sha256_of(OTHER)) == path
    with pytest.raises(FetchError, match=f"{sha256_of(OTHER)} and should be {sha256_of(CONTENT)}"):
        fetch(NAME, server.url, sha256_of(CONTENT))
    assert path.exists() and server.ranges == []


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        (NAME, None, f"{NAME} has no public address; put it by hand into .*cache$"),
        (NAME, "file:///etc/passwd", "no http.s. address: 'file:///etc/passwd'"),
        ("../" + NAME, None, f"'../{NAME}' is no bare file name"),
        ("", None, "'' is no bare file name"),
        ("x.part", "http://127.0.0.1/", "'x.part' is a name that the cache folder uses itself"),
        (NAME, "http://127.0.0.1:1/x", f"{NAME} from http://127.0.0.1:1/x: cannot reach .*cache "),
        (NAME, "http://a.invalid/x", "cannot reach the server .*no DNS.*by hand into .*cache"),
        (NAME, "http://[bad/x", "cannot reach the server"),
    ],
)
def test_no_network_needed_to_fail(
    name: str, url: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, *args: object) -> list[object]:
        if host == "a.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "no DNS")
        return real(host, *args)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(FetchError, match=says):
        fetch(name, url)


def test_folder_that_cannot_be_written(server: Server, cache: Path) -> None:
    put(cache, b"a file where the folder should be")
    with pytest.raises(FetchError, match=f"cannot write {NAME} in {cache} .*HEAR_PRETRAINEDSED"):
        fetch(NAME, server.url)


def test_progress_bar_only_when_wanted(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(NAME, server.url)
    assert capfd.readouterr() == ("", "")
    fetch("other.pt", server.url, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "other.pt" in err


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
