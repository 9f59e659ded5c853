"""Checkpoint files: downloads into the cache folder.

`fetch` is the only network use of the package. A download grows in `<name>.part` and gets its own
name only when it is whole and checked. `<name>.part.json` says of which remote file the part is the
beginning; it is continued only while the server has that file. Method: HTTP range requests
(RFC 9110, 13.1.5 and 14).
"""

import errno
import hashlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from importlib.util import find_spec
from pathlib import Path

from hear_pretrainedsed.records import RECORDS_NAME, cache_folder, known_sha256, locked

TIMEOUT_S = 30.0
N_ATTEMPTS = 5  # attempts in a row that bring nothing new, or restarts from byte 0
BACKOFF_S = (0.5, 1.0, 2.0, 4.0)
CHUNK_BYTES = 1 << 18

_OWN_SUFFIXES = (".part", ".part.json", ".lock", RECORDS_NAME)
_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")


class FetchError(ValueError):
    """A file that cannot be had: one line with its name, its address and its folder."""


class _Interrupted(Exception):
    """An attempt that ended early; another one may succeed."""


def find(file_name: str) -> Path | None:
    """Return the file of this name in the cache folder, fetched or put there by hand, or None.

    No network. A download under way (`.part`) is never found. Raises FetchError if given a path.
    """
    if not file_name or Path(file_name).name != file_name:
        raise FetchError(f"{file_name!r} is no bare file name such as 'BEATs_ssl.pt'")
    path = cache_folder() / file_name
    return path if os.path.isfile(path) and not file_name.endswith(_OWN_SUFFIXES) else None


def fetch(
    file_name: str,
    url: str | None,
    sha256: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    progress: bool | None = None,
) -> Path:
    """Return the path of `file_name` in the cache folder, downloaded from `url` if not there yet.

    Continues an interrupted download; of two processes that want one file, one downloads it.
    `timeout_s` is the longest silence of the server, in seconds. `progress` shows a bar on stderr,
    None: if that is a terminal. Raises FetchError for all that can go wrong here and on the way.
    """
    folder, found = cache_folder(), find(file_name)
    try:
        if found:
            return _checked(found, sha256)
        if url is None or not url.startswith(("http://", "https://")):
            what = "no public address" if url is None else f"no http(s) address: {url!r}"
            raise FetchError(f"{file_name} has {what}; put it by hand into {folder}")
        if file_name.endswith(_OWN_SUFFIXES):
            raise FetchError(f"{file_name!r} is a name that the cache folder uses itself")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{file_name}.lock"):
            if found := find(file_name):  # brought by another process while this one waited
                return _checked(found, sha256)
            with _progress_bar(file_name, progress) as report:
                job = _Download(file_name, url, folder, timeout_s, report)
                _download(job)
            return _publish(job, sha256)
    except OSError as error:  # of the file system: those of the network became _Interrupted
        advice = "set $HEAR_PRETRAINEDSED_HOME to a folder that can be written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some room or set $HEAR_PRETRAINEDSED_HOME to a larger place"
        raise FetchError(f"cannot write {file_name} in {folder} ({error}): {advice}") from error


def is_web_page(start: bytes) -> bool:
    """Whether a file that begins like this is HTML or XML: a log-in or error page, no weights."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_STARTS)


@dataclass(frozen=True)
class _Source:
    """The remote file that a part is the beginning of."""

    url: str
    validator: str | None
    n_bytes: int | None


@dataclass
class _Download:
    """A call of `fetch` that has to use the network."""

    name: str
    url: str
    folder: Path
    timeout_s: float
    report: Callable[[int, int | None], None]
    connected: bool = False
    n_restarts: int = 0

    def __post_init__(self) -> None:
        self.part = self.folder / f"{self.name}.part"
        self.source_file = self.folder / f"{self.name}.part.json"

    @property
    def n_done(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def error(self, why: object) -> FetchError:
        by_hand = f"put the file by hand into {self.folder} under that name"
        return FetchError(f"cannot fetch {self.name} from {self.url}: {why}; {by_hand}")

    def reason(self, error: object) -> str:
        silent = f"nothing came for {self.timeout_s:g} s"
        return silent if isinstance(error, TimeoutError) else str(error) or repr(error)

    def source(self) -> _Source | None:
        """Read what the part is the beginning of; None if that is not known."""
        try:
            source = _Source(**json.loads(self.source_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return source if source.url == self.url else None

    def drop(self) -> None:
        """Remove the part first and what tells its source then, for a kill in between."""
        self.n_restarts += self.n_done > 0
        self.part.unlink(missing_ok=True)
        self.source_file.unlink(missing_ok=True)


def _download(job: _Download) -> None:
    """Fill the part, in as many attempts as it takes while they bring something new."""
    n_failed = 0
    while True:
        n_before = job.n_done
        try:
            return _attempt(job)
        except _Interrupted as trouble:
            n_failed = 1 if job.n_done > n_before else n_failed + 1
            # A server that cannot continue a file brings bytes each time, and they are lost again.
            if max(n_failed, job.n_restarts) >= N_ATTEMPTS:
                kept = f" ({job.n_done} bytes are kept for the next call)" if job.n_done else ""
                raise job.error(f"{trouble}{kept}") from trouble
        time.sleep(BACKOFF_S[min(n_failed, len(BACKOFF_S)) - 1])


def _attempt(job: _Download) -> None:
    """Make one request and write what it brings; returns when the part is whole."""
    source = job.source()
    n_done = job.n_done if source else 0
    if source and 0 < n_done == source.n_bytes:  # stopped between the last byte and the checks
        return
    with _open(job, source, n_done) as response:
        if response.status == 206:
            n_bytes = _continued_length(job, response.headers, source, n_done)
            _receive(job, response, n_done, n_bytes, b"")
            return
        n_bytes = response.length
        head = _read(job, response, CHUNK_BYTES)
        kind = response.headers.get_content_type()
        if is_web_page(head) or kind in ("text/html", "application/xhtml+xml"):
            raise job.error(f"the server sent a web page ({kind}) in its place")
        job.drop()
        source = _Source(job.url, _validator(response.headers), n_bytes)
        job.source_file.write_text(json.dumps(asdict(source)), encoding="utf-8")
        _receive(job, response, 0, n_bytes, head)


def _open(job: _Download, source: _Source | None, n_done: int) -> HTTPResponse:
    headers = {"User-Agent": "hear_pretrainedsed", "Accept-Encoding": "identity"}
    if source and source.validator and n_done:
        headers |= {"Range": f"bytes={n_done}-", "If-Range": source.validator}
    try:
        request = urllib.request.Request(job.url, headers=headers)
        response = urllib.request.urlopen(request, timeout=job.timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416:  # it has no such byte: the part belongs to some other file
            job.drop()
        elif error.code not in (408, 429) and error.code < 500:
            raise job.error(answer) from error
        raise _Interrupted(answer) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        lost = isinstance(reason, TimeoutError | ConnectionResetError)
        # No name, no route, a refusal: offline, unless there was a connection a moment ago.
        if isinstance(error, urllib.error.URLError | ValueError) and not (lost or job.connected):
            raise job.error(f"cannot reach the server ({reason})") from error
        raise _Interrupted(job.reason(reason)) from error
    job.connected = True
    return response


def _validator(headers: Message) -> str | None:
    """What If-Range may carry: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    etag = headers["ETag"]
    return etag if etag and not etag.startswith("W/") else headers["Last-Modified"]


def _continued_length(job: _Download, headers: Message, source: _Source | None, n_done: int) -> int:
    """Check that a partial answer continues the part; return the length of the whole file."""
    match = re.fullmatch(r"\s*bytes (\d+)-\d+/(\d+)\s*", headers["Content-Range"] or "")
    if match and source and int(match[1]) == n_done and source.n_bytes in (None, int(match[2])):
        # Some servers send a part of the new file although If-Range names the old one.
        if _validator(headers) in (None, source.validator):
            return int(match[2])
    job.drop()
    raise _Interrupted(f"the server sent a part that does not continue byte {n_done}")


def _receive(
    job: _Download, response: HTTPResponse, n_done: int, n_bytes: int | None, chunk: bytes
) -> None:
    with open(job.part, "ab") as file:
        while True:
            file.write(chunk)
            file.flush()  # a killed process leaves all that it had got
            n_done += len(chunk)
            job.report(n_done, n_bytes)
            if n_done == n_bytes:
                return
            chunk = _read(job, response, min(CHUNK_BYTES, (n_bytes or sys.maxsize) - n_done))
            if not chunk and n_bytes is None:
                return
            if not chunk:
                raise _Interrupted(f"the connection ended after {n_done} of {n_bytes} bytes")


def _read(job: _Download, response: HTTPResponse, n_bytes: int) -> bytes:
    try:
        return response.read1(n_bytes)
    except (OSError, HTTPException) as error:
        raise _Interrupted(job.reason(error)) from error


def _publish(job: _Download, sha256: str | None) -> Path:
    """Give a whole part its own name if its bytes are right, else remove it."""
    with open(job.part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
        file.seek(0)
        # torch.save writes a zip archive. Its end shows that a server announced too little.
        is_cut = file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(file)
        os.fsync(file.fileno())
    if sha256 and digest != sha256.lower() or is_cut or not job.n_done:
        why = f"its sha256 is {digest} and should be {sha256}" if sha256 else "the file is cut off"
        n_bytes = job.n_done
        job.drop()
        raise job.error(f"{why}; the {n_bytes} bytes that came were removed")
    os.replace(job.part, job.folder / job.name)
    job.source_file.unlink(missing_ok=True)
    return job.folder / job.name


def _checked(path: Path, sha256: str | None) -> Path:
    """Check a file that is there against the registry's sha256."""
    if sha256 and (digest := known_sha256(path)) != sha256.lower():
        advice = "remove the file to have it fetched, or load it by its path"
        raise FetchError(f"the sha256 of {path} is {digest} and should be {sha256}: {advice}")
    return path


@contextmanager
def _progress_bar(file_name: str, show: bool | None) -> Iterator[Callable[[int, int | None], None]]:
    if not (sys.stderr.isatty() if show is None else show) or find_spec("rich") is None:
        yield lambda n_done, n_bytes: None
        return
    from rich import console, progress

    columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn())
    stderr = console.Console(stderr=True)
    with progress.Progress(*columns, progress.TimeRemainingColumn(), console=stderr) as bar:
        task = bar.add_task(file_name, total=None)
        yield lambda n_done, n_bytes: bar.update(task, completed=n_done, total=n_bytes)
