"""Standard MIDI files -> notes in seconds, held by the sustain pedal.

The file format is that of the MIDI 1.0 specification (Standard MIDI Files 1.0). How notes are made
of it follows what HEAR's maestro task was made with: pretty_midi's pairing of note-on and note-off,
and note_seq's `apply_sustain_control_changes`.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DEFAULT_TEMPO_US = 500_000  # of a quarter note, until a file sets one
_SUSTAIN = 64  # the controller's number; values from 64 on are "down"
_DOWN, _UP, _NOTE_ON, _NOTE_OFF = range(4)  # the order of what happens at one time
_N_DATA_BYTES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}  # by kind of message


@dataclass(eq=False)
class Note:
    """A note from the key's stroke to its silence."""

    onset_s: float
    offset_s: float
    pitch: int


@dataclass(frozen=True)
class _Message:
    tick: int
    track: int
    status: int  # 0xFF: a tempo, whose microseconds are `a`
    a: int
    b: int


def read_notes(data: bytes) -> list[Note]:
    """Notes of a MIDI file, by onset; ends are lengthened by the pedal.

    A note-off ends all notes of its pitch and channel that began before it; notes that never end
    are left out. While the pedal is down ends wait for its lift, or for the same pitch struck
    again. Pedals are told apart by track and channel. Raises `ValueError` for damaged files, and
    for those with SMPTE time or independent tracks.
    """
    try:
        messages, ticks_per_quarter = _read_messages(data)
    except (IndexError, struct.error):
        raise ValueError("a MIDI file that ends too early, or is damaged") from None
    clock = _Clock(messages, ticks_per_quarter)
    parts: dict[tuple[int, int], list[_Message]] = defaultdict(list)
    for message in messages:
        if message.status != 0xFF:
            parts[message.track, message.status & 0xF].append(message)
    notes = [note for part in parts.values() for note in _notes_of(part, clock)]
    return sorted(notes, key=lambda note: (note.onset_s, note.pitch))


def _read_messages(data: bytes) -> tuple[list[_Message], int]:
    """Notes, pedal and tempos of all tracks, each track in order; ticks a quarter note."""
    if data[:4] != b"MThd":
        raise ValueError("no standard MIDI file (MThd)")
    n_bytes, kind, n_tracks, division = struct.unpack(">IHHH", data[4:14])
    if kind == 2 or division & 0x8000 or division == 0:
        raise ValueError("a MIDI file with SMPTE time or independent tracks; neither is read")
    place, track = 8 + n_bytes, 0
    messages: list[_Message] = []
    while track < n_tracks:
        name, size = struct.unpack(">4sI", data[place : place + 8])
        place += 8
        if place + size > len(data):
            raise IndexError
        if name == b"MTrk":
            messages += _read_track(data[place : place + size], track)
            track += 1
        place += size
    return messages, division


def _read_track(data: bytes, track: int) -> Iterator[_Message]:
    place = tick = status = 0
    while place < len(data):
        wait, place = _number(data, place)
        tick += wait
        if data[place] >= 0x80:
            status = data[place]
            place += 1
        elif not 0x80 <= status < 0xF0:
            raise ValueError("a MIDI track that continues a message before it began one")
        if status < 0xF0:
            n = _N_DATA_BYTES[status >> 4]
            first, second = data[place], data[place + n - 1]
            place += n
            if status >> 4 in (0x8, 0x9) or (status >> 4 == 0xB and first == _SUSTAIN):
                yield _Message(tick, track, status, first, second)
            continue
        if status not in (0xF0, 0xF7, 0xFF):
            raise ValueError(f"a MIDI track with the status byte {status:#x}, which no file has")
        kind = data[place] if status == 0xFF else None
        size, place = _number(data, place + (kind is not None))
        if place + size > len(data):
            raise IndexError
        if kind == 0x51:
            yield _Message(tick, track, 0xFF, int.from_bytes(data[place : place + size]), 0)
        place += size
        if kind == 0x2F:
            return


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    value = 0
    for _ in range(4):
        byte = data[place]
        value, place = value << 7 | byte & 0x7F, place + 1
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than four bytes in a MIDI track")


class _Clock:
    """Ticks -> seconds, through the tempos of all tracks."""

    def __init__(self, messages: Sequence[_Message], ticks_per_quarter: int) -> None:
        set_at = {m.tick: m.a for m in messages if m.status == 0xFF}
        self._steps: list[tuple[int, float, float]] = []  # tick, s there, s a tick from there on
        tick, time_s, rate = 0, 0.0, _DEFAULT_TEMPO_US / 1e6 / ticks_per_quarter
        for new_tick in sorted(set_at):
            time_s += (new_tick - tick) * rate
            tick, rate = new_tick, set_at[new_tick] / 1e6 / ticks_per_quarter
            self._steps.append((tick, time_s, rate))
        if not self._steps or self._steps[0][0] > 0:
            first = (0, 0.0, _DEFAULT_TEMPO_US / 1e6 / ticks_per_quarter)
            self._steps.insert(0, first)

    def seconds(self, tick: int) -> float:
        """When a tick is."""
        step = next(step for step in reversed(self._steps) if step[0] <= tick)
        return step[1] + (tick - step[0]) * step[2]


def _notes_of(part: Sequence[_Message], clock: _Clock) -> list[Note]:
    """Notes of one track and channel, with their pedal."""
    notes = []
    happens: list[tuple[float, int, Note | None]] = []
    begun: dict[int, list[int]] = defaultdict(list)
    for message in part:
        is_on = message.status >> 4 == 0x9 and message.b > 0
        if message.status >> 4 == 0xB:
            kind = _DOWN if message.b >= 64 else _UP
            happens.append((clock.seconds(message.tick), kind, None))
        elif is_on:
            begun[message.a].append(message.tick)
        else:
            ended = [tick for tick in begun[message.a] if tick != message.tick]
            kept = [tick for tick in begun[message.a] if tick == message.tick]
            notes += [
                Note(clock.seconds(tick), clock.seconds(message.tick), message.a) for tick in ended
            ]
            begun[message.a] = kept if ended else []
    happens += [(note.onset_s, _NOTE_ON, note) for note in notes]
    happens += [(note.offset_s, _NOTE_OFF, note) for note in notes]
    return _sustained(notes, sorted(happens, key=lambda event: event[:2]))


def _sustained(notes: list[Note], happens: Sequence[tuple[float, int, Note | None]]) -> list[Note]:
    """Lengthen notes by the pedal; `happens` is in order of time."""
    is_down = False
    active: list[Note] = []
    gone: set[int] = set()
    for time_s, kind, note in happens:
        if kind == _DOWN:
            is_down = True
        elif kind == _UP:
            is_down = False
            still = [held for held in active if held.offset_s >= time_s]  # its key is down
            for held in active:
                held.offset_s = max(held.offset_s, time_s)
            active = still
        elif kind == _NOTE_ON:
            assert note is not None
            if is_down:
                again = [held for held in active if held.pitch == note.pitch]
                for held in again:  # struck again: it ends here; of two at one time one remains
                    held.offset_s = time_s
                    gone |= {id(held)} if held.onset_s == time_s else set()
                active = [held for held in active if held.pitch != note.pitch]
            active.append(note)
        elif not is_down:
            active = [held for held in active if held is not note]
    if happens:
        for held in active:
            held.offset_s = happens[-1][0]
    return [note for note in notes if id(note) not in gone]
