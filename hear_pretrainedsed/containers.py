"""What libsndfile does not tell of MP3 and Ogg files, read from their own headers.

The length of an MP3 file stands in its first frame, if an encoder has put a Xing or Info tag there;
without one libsndfile estimates it from the file's size, and reads no further. Of streams that
follow each other in one file it reads the first. Layouts: MPEG audio's frame header (ISO/IEC
11172-3, 2.4.1.3), the Xing tag (Xing's VBR header SDK), ID3v2 (id3.org), Ogg pages (RFC 3533, 6).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import BinaryIO, NamedTuple

_HEAD_BYTES = 64  # of an MPEG frame: its header, side information, and a tag's flags and counts
_FRAMES, _BYTES = 1, 2  # flags of what a tag states
_OGG_PAGE_BYTES = 65_307  # the longest page
_OGG_FIRST = 2  # flag of a stream's first page


class _Tag(NamedTuple):
    """A Xing or Info tag: where its frame begins, and how many bytes it states from there on."""

    place: int
    states_frames: bool
    n_bytes: int | None


def estimates_length(file: BinaryIO) -> bool:
    """Whether an MP3 file states no length, so that libsndfile's is a guess."""
    tag = _xing_tag(file, 0)
    return tag is None or not tag.states_frames


def holds_several(file: BinaryIO, kind: str) -> bool:
    """Whether MP3 files or Ogg streams follow each other in one; kind: libsndfile's format."""
    follow = {"OGG": is_chained_ogg, "MP3": is_joined_mp3}
    return kind in follow and follow[kind](file)


def is_joined_mp3(file: BinaryIO) -> bool:
    """Whether another MP3 file follows in one whose first frame states its length."""
    tag = _xing_tag(file, 0)
    if tag is None or not tag.states_frames or tag.n_bytes is None:
        return False
    end = tag.place + tag.n_bytes
    file.seek(end)
    if file.read(3) == b"TAG":  # ID3v1, always of this length
        end += 128
    return _xing_tag(file, end) is not None


def _xing_tag(file: BinaryIO, place: int) -> _Tag | None:
    """The tag of the MPEG frame at `place`, or after the ID3v2 tags there."""
    place = _after_id3(file, place)
    file.seek(place)
    head = file.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or head[0] != 0xFF or head[1] < 0xE0:
        return None
    is_mpeg1, is_mono = head[1] & 0x18 == 0x18, head[3] & 0xC0 == 0xC0
    start = 4 + ((17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17))
    if head[start : start + 4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(head[start + 4 : start + 8])
    n_frames = int.from_bytes(head[start + 8 : start + 12]) if flags & _FRAMES else 0
    at = start + (12 if flags & _FRAMES else 8)
    n_bytes = int.from_bytes(head[at : at + 4]) if flags & _BYTES else None
    return _Tag(place, n_frames > 0, n_bytes)


def _after_id3(file: BinaryIO, place: int) -> int:
    """Where ID3v2 tags that begin at `place` end; `place` where there is none."""
    while True:
        file.seek(place)
        head = file.read(10)
        if not (head.startswith(b"ID3") and len(head) == 10):
            return place
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        place += 10 + size + 10 * bool(head[5] & 0x10)  # with a footer


def is_chained_ogg(file: BinaryIO) -> bool:
    """Whether other Ogg streams follow those that a file begins with."""
    serials, place = set(), 0
    while True:  # all streams that run side by side begin before anything else
        file.seek(place)
        page = file.read(27 + 255)
        if len(page) < 27 or page[:5] != b"OggS\0" or not page[5] & _OGG_FIRST:
            break
        serials.add(page[14:18])
        table = page[27 : 27 + page[26]]
        place += 27 + len(table) + sum(table)
    size = file.seek(0, 2)
    file.seek(max(0, size - 2 * _OGG_PAGE_BYTES))
    tail = file.read()
    last = tail.rfind(b"OggS\0")
    serial = tail[last + 14 : last + 18]
    return bool(serials) and last >= 0 and len(serial) == 4 and serial not in serials


@contextmanager
def streamed(file: BinaryIO) -> Iterator[int]:
    """A descriptor that gives an MP3's frames one after the other, and cannot be sought.

    Of such a stream libsndfile guesses no length, and reads it to its end. A socket, since its end
    is seen even while a process that was forked meanwhile holds it too.
    """
    start = _after_id3(file, 0)  # libsndfile skips no long tag in a stream
    out, into = socket.socketpair()

    def feed() -> None:
        with suppress(OSError):  # the reader may have seen enough
            file.seek(start)  # sendfile takes a start of 0 for "where the file is"
            into.sendfile(file, start)
            into.shutdown(socket.SHUT_WR)

    thread = Thread(target=feed, daemon=True)
    with out, into:
        thread.start()
        try:
            yield out.fileno()
        finally:
            with suppress(OSError):
                out.shutdown(socket.SHUT_RDWR)
            thread.join()
