"""A server on 127.0.0.1 that answers downloads by a script: cuts, stalls, lies."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
