"""MIDI files made by hand -> notes held by the pedal."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.tasks.midi import read_notes

TICKS = 100  # a quarter note; at the default tempo a tick is 5 ms
TICK_S = 0.005


def number(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.insert(0, value & 0x7F | 0x80)
    return bytes(parts)


def track(events: list[tuple[int, bytes]], end: bool = True) -> bytes:
    """A track chunk; events are (tick, message), in any order of ticks that is not descending."""
    data, before = b"", 0
    for tick, message in events:
        data += number(tick - before) + message
        before = tick
    data += b"\0\xff\x2f\0" if end else b""
    return b"MTrk" + struct.pack(">I", len(data)) + data


def midi(*tracks: bytes, kind: int = 1, division: int = TICKS) -> bytes:
    return b"MThd" + struct.pack(">IHHH", 6, kind, len(tracks), division) + b"".join(tracks)


def on(pitch: int, velocity: int = 64, channel: int = 0) -> bytes:
    return bytes((0x90 | channel, pitch, velocity))


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes((0x80 | channel, pitch, 0))


def pedal(value: int, channel: int = 0) -> bytes:
    return bytes((0xB0 | channel, 64, value))


def tempo(us: int) -> bytes:
    return b"\xff\x51\x03" + us.to_bytes(3)


def ticks(*tracks: bytes) -> list[tuple[int, int, int]]:
    """Notes as (onset, offset, pitch) in ticks."""
    notes = read_notes(midi(*tracks))
    return [(round(n.onset_s / TICK_S), round(n.offset_s / TICK_S), n.pitch) for n in notes]


def test_notes_in_seconds() -> None:
    (note,) = read_notes(midi(track([(10, on(60)), (30, off(60))])))
    assert (note.onset_s, note.offset_s, note.pitch) == pytest.approx((0.05, 0.15, 60))


def test_a_note_on_without_velocity_ends_a_note() -> None:
    assert ticks(track([(0, on(60)), (20, on(60, 0)), (30, on(60)), (40, off(60))])) == [
        (0, 20, 60),
        (30, 40, 60),
    ]


def test_running_status_and_what_is_skipped() -> None:
    events = [
        (0, b"\xff\x03\x04name"),
        (0, b"\xf0\x03\x01\x02\xf7"),
        (0, b"\xc0\x05"),  # program: one byte of data
        (0, b"\xe0\x00\x40"),
        (0, on(60)),
        (5, bytes((62, 64))),  # running status: note on
        (10, bytes((60, 0))),
        (200, bytes((62, 0))),  # a wait of two bytes
        (200, bytes((0xB0, 7, 100))),  # another controller
    ]
    chunk = b"XFIH" + struct.pack(">I", 3) + b"abc"
    data = midi(track(events)).replace(b"MTrk", chunk + b"MTrk", 1)
    assert [(n.pitch, round(n.offset_s / TICK_S)) for n in read_notes(data)] == [
        (60, 10),
        (62, 200),
    ]


def test_tempos_of_another_track() -> None:
    tempos = track([(0, tempo(1_000_000)), (100, tempo(250_000)), (300, tempo(2_000_000))])
    notes = track([(50, on(60)), (200, off(60)), (300, on(62)), (400, off(62))])
    found = read_notes(midi(tempos, notes))
    # 100 ticks are 1 s up to tick 100, then 0.25 s up to tick 300, then 2 s
    assert [(n.onset_s, n.offset_s) for n in found] == [
        pytest.approx((0.5, 1.25)),
        pytest.approx((1.5, 3.5)),
    ]


def test_the_default_tempo_holds_until_one_is_set() -> None:
    (note,) = read_notes(midi(track([(100, tempo(1_000_000)), (100, on(60)), (200, off(60))])))
    assert (note.onset_s, note.offset_s) == pytest.approx((0.5, 1.5))


def test_the_pedal_holds_notes() -> None:
    events = [(0, pedal(127)), (10, on(60)), (20, off(60)), (50, pedal(0)), (60, on(62))]
    assert ticks(track([*events, (70, off(62))])) == [(10, 50, 60), (60, 70, 62)]


def test_half_pedal_values() -> None:
    for value, end in ((63, 20), (64, 50)):
        events = [(0, pedal(value)), (10, on(60)), (20, off(60)), (50, pedal(0))]
        assert ticks(track(events)) == [(10, end, 60)]


def test_a_key_that_is_down_outlasts_the_pedal() -> None:
    events = [(0, pedal(127)), (10, on(60)), (50, pedal(0)), (80, off(60))]
    assert ticks(track(events)) == [(10, 80, 60)]


def test_a_pedal_after_the_key_holds_nothing() -> None:
    assert ticks(track([(10, on(60)), (20, off(60)), (25, pedal(127)), (50, pedal(0))])) == [
        (10, 20, 60)
    ]


def test_a_pedal_pressed_at_the_release_holds() -> None:
    # of what happens at one time, the pedal comes first
    assert ticks(track([(10, on(60)), (20, off(60)), (20, pedal(127)), (50, pedal(0))])) == [
        (10, 50, 60)
    ]


def test_struck_again_under_the_pedal() -> None:
    events = [(0, pedal(127)), (10, on(60)), (20, off(60)), (30, on(60)), (40, off(60))]
    assert ticks(track([*events, (50, pedal(0))])) == [(10, 30, 60), (30, 50, 60)]


def test_a_pedal_never_lifted_holds_to_the_last_event() -> None:
    events = [(0, pedal(127)), (10, on(60)), (20, off(60)), (30, on(62)), (90, off(62))]
    assert ticks(track(events)) == [(10, 90, 60), (30, 90, 62)]


def test_pedals_are_those_of_a_channel() -> None:
    events = [(0, pedal(127, 1)), (10, on(60)), (20, off(60)), (50, pedal(0, 1))]
    assert ticks(track(events)) == [(10, 20, 60)]


def test_one_release_ends_all_notes_of_a_pitch() -> None:
    events = [(0, on(60)), (10, on(60)), (20, off(60)), (30, off(60)), (40, on(64))]
    assert ticks(track(events)) == [(0, 20, 60), (10, 20, 60)]  # 64 never ends


def test_release_and_stroke_at_one_tick() -> None:
    events = [(0, on(60)), (20, on(60)), (20, off(60)), (30, off(60))]
    assert ticks(track(events)) == [(0, 20, 60), (20, 30, 60)]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no standard MIDI file"),
        (b"RIFF0000", "no standard MIDI file"),
        (b"MThd\0\0", "ends too early"),
        (midi(track([(0, on(60))]))[:-9], "ends too early"),
        (midi(track([(0, on(60)), (1, b"\x90\x3c")], end=False)), "ends too early"),
        (midi(track([(0, b"\x3c\x40")])), "continues a message before it began one"),
        (midi(track([(0, b"\xf1\x00")])), "status byte 0xf1"),
        (midi(track([(0, b"\xff\x01\x70a")])), "ends too early"),
        (midi(track([(0, b"\xff\x01\xff\xff\xff\xff\x00")])), "more than four bytes"),
        (midi(track([]), division=0xE728), "SMPTE"),
        (midi(track([]), division=0), "SMPTE"),
        (midi(track([]), kind=2), "independent tracks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files(data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read_notes(data)


@given(data=st.binary(max_size=60), cut=st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_notes_or_an_error(data: bytes, cut: int) -> None:
    whole = midi(b"MTrk" + struct.pack(">I", len(data)) + data)
    for text in (data, whole, whole[:cut]):
        try:
            read_notes(text)
        except ValueError:
            pass


Stroke = tuple[int, int, int]  # onset, length, pitch


def held(strokes: list[Stroke], downs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Note by note: an end under the pedal waits for its lift or for the next stroke of a pitch."""
    notes = []
    for onset, length, pitch in strokes:
        end = onset + length
        for down, up in downs:
            if down <= end < up:
                end = up
        for again, _, other in strokes:
            under = any(down <= again < up for down, up in downs)
            if other == pitch and onset < again < end and under:
                end = again
        notes.append((onset, end, pitch))
    return sorted(notes, key=lambda note: (note[0], note[2]))


@given(
    # strokes on odd ticks, the pedal on even ones; a pitch is released before it is struck again
    gaps=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 8), st.sampled_from((60, 61, 62))), max_size=12
    ),
    pedals=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 10)), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_the_pedal_note_by_note(
    gaps: list[tuple[int, int, int]], pedals: list[tuple[int, int]]
) -> None:
    free: dict[int, int] = {}
    strokes = []
    for gap, length, pitch in gaps:
        onset = free.get(pitch, 1) + 2 * gap
        strokes.append((onset, 2 * length, pitch))
        free[pitch] = onset + 2 * length
    downs, at = [], 0
    for gap, length in pedals:
        downs.append((at + 2 * gap, at + 2 * gap + 2 * length))
        at = downs[-1][1]
    events = [(down, pedal(100)) for down, _ in downs] + [(up, pedal(0)) for _, up in downs]
    for onset, length, pitch in strokes:
        events += [(onset, on(pitch)), (onset + length, off(pitch))]
    assert ticks(track(sorted(events, key=lambda event: event[0]))) == held(strokes, downs)
