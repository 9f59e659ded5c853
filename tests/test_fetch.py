"""Downloads against a scripted server on 127.0.0.1."""

import errno
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hear_pretrainedsed.fetch import FetchError, fetch, find
from tests.scripted_server import CONTENT, NAME, PAGE, Reply, Server

module = sys.modules[fetch.__module__]


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
    """Start a process that fetches; without the package's `__init__`, which imports torch."""
    program = (
        "import sys, types\n"
        "package = sys.modules['hear_pretrainedsed'] = types.ModuleType('hear_pretrainedsed')\n"
        f"package.__path__ = [{os.path.dirname(module.__file__)!r}]\n"
        "from hear_pretrainedsed.fetch import fetch\n"
        f"fetch({NAME!r}, {url!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)


def wait_for_part(cache: Path, n_bytes: int) -> None:
    part = cache / f"{NAME}.part"
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= n_bytes):
        assert time.monotonic() < end, "the child downloaded nothing"
        time.sleep(0.01)


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
    assert process.wait(60) == -how
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
    assert [process.wait(60) for process in processes] == [0, 0, 0]
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
            if self.tell() < 100_000:  # blocks come from the network in any size
                return super().write(block[: min(10_000, 100_000 - self.tell())])
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
