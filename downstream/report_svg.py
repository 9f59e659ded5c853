"""Charts as SVG: axes, points, lines and labels that do not cover each other.

Colours are classes (`c0` ... `c7`, `ink`, `grid`) that the page's style sheet sets, so that a chart
follows the page into the dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from downstream.report_markup import Markup, el

WIDTH, HEIGHT = 372.0, 290.0
N_COLOURS = 8
_CHAR, _LINE = 5.9, 12.0  # a letter's width and a line's height at the charts' font size
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Scale:
    """Values low ... high -> places start ... stop, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, x = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (x - low) / (high - low) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values between low and high; on a short logarithmic scale those of a linear one."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            if len(inside := [tick for tick in found if self.low <= tick <= self.high]) > 1:
                return inside
        raw = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [i * step for i in range(first, last + 1)]


def span_of(values: Sequence[float], room: float = 0.08) -> tuple[float, float]:
    """Lowest and highest value with some room, never equal."""
    low, high = min(values), max(values)
    more = (high - low) * room or abs(high) * 0.1 or 0.1
    return low - more, high + more


def log_span(values: Sequence[float], room: float = 1.25) -> tuple[float, float]:
    """The same of a logarithmic scale."""
    return min(values) / room, max(values) * room


@dataclass(frozen=True)
class Ink:
    """How a line or a point is drawn: the number of its colour, its shape, its dashes."""

    colour: int = 0
    shape: str = "circle"
    dash: int = 0
    extra: str = ""  # a further class: `faint`, `open`

    @property
    def style(self) -> str:
        """Its classes."""
        return f"c{self.colour % N_COLOURS} {self.extra}".strip()


Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Chart:
    """A chart under construction: x and y scales, parts, places that are taken."""

    title: str
    x: Scale
    y: Scale
    width: float = WIDTH
    height: float = HEIGHT
    parts: list[Markup] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)
    crossed: list[Box] = field(default_factory=list)  # where lines are

    def axes(self, x_title: str, y_title: str, x_names: Sequence[str] | None = None) -> None:
        """Grid lines, ticks and titles; `x_names` stand at 0, 1, ... instead of numbers."""
        left, right, bottom, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        for tick in self.y.ticks:
            at = self.y(tick)
            self.parts.append(el("line", class_="grid", x1=left, x2=right, y1=at, y2=at))
            label = _tick_text(tick)
            self.parts.append(el("text", label, class_="tick end", x=left - 6, y=at + 4))
        ticks = range(len(x_names)) if x_names else self.x.ticks
        for tick in ticks:
            at, label = self.x(tick), x_names[tick] if x_names else _tick_text(tick)
            self.parts.append(el("line", class_="grid", x1=at, x2=at, y1=bottom, y2=top))
            self.parts.append(el("text", label, class_="tick mid", x=at, y=bottom + 16))
        middle = (left + right) / 2
        self.parts.append(el("text", x_title, class_="axis mid", x=middle, y=bottom + 34))
        self.parts.append(el("text", y_title, class_="axis", x=4.0, y=top - 10))

    def rows(self, names: Sequence[str], x_title: str) -> None:
        """Axes of a chart whose y are lines with names, at 0, 1, ... from the bottom."""
        left, right, bottom, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        for tick in self.x.ticks:
            at = self.x(tick)
            self.parts.append(el("line", class_="grid", x1=at, x2=at, y1=bottom, y2=top))
            self.parts.append(el("text", _tick_text(tick), class_="tick mid", x=at, y=bottom + 16))
        for i, name in enumerate(names):
            self.parts.append(el("text", name, class_="tick end", x=left - 8, y=self.y(i) + 4))
        title = el("text", x_title, class_="axis mid", x=(left + right) / 2, y=bottom + 34)
        self.parts.append(title)

    def line(self, points: Sequence[tuple[float, float]], ink: Ink) -> None:
        """A line through values (x, y)."""
        drawn = [(self.x(x), self.y(y)) for x, y in points]
        for (x0, y0), (x1, y1) in itertools.pairwise(drawn):
            n = max(1, int(math.hypot(x1 - x0, y1 - y0) / 6))
            steps = [(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(n + 1)]
            self.crossed += [(x - 1, y - 1, x + 1, y + 1) for x, y in steps]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        self.parts.append(el("polyline", class_=f"line {ink.style} dash{ink.dash}", points=places))

    def bar(self, x: float, low: float, high: float, ink: Ink) -> None:
        """A vertical interval at x."""
        at, style = self.x(x), f"bar {ink.style}"
        self.parts.append(el("line", class_=style, x1=at, x2=at, y1=self.y(low), y2=self.y(high)))

    def point(self, x: float, y: float, ink: Ink, hint: str) -> None:
        """A point with a hint that is shown under the mouse."""
        px, py = self.x(x), self.y(y)
        self.taken.append((px - 5, py - 5, px + 5, py + 5))
        self.parts.append(_shape(ink, px, py, hint))

    def label(self, x: float, y: float, words: str) -> bool:
        """Words near a point, where they cover nothing, or lines only; False if nowhere."""
        px, py = self.x(x), self.y(y)
        w = len(words) * _CHAR
        right, left, mid = px + 8, px - 8 - w, px - w / 2
        places = [(right, py + 4), (left, py + 4), (mid, py - 9), (mid, py + 18)]
        places += [(right, py - 8), (right, py + 16), (left, py - 8), (left, py + 16)]
        boxes = [(at, base - _LINE + 2, at + w, base + 2) for at, base in places]
        for taken in ([*self.taken, *self.crossed], self.taken):
            for (at, base), box in zip(places, boxes, strict=True):
                if self._is_free(box, taken):
                    self.taken.append(box)
                    self.parts.append(el("text", words, class_="label", x=at, y=base))
                    return True
        return False

    def _is_free(self, box: Box, taken: Sequence[Box]) -> bool:
        left, top, right, bottom = box
        if left < self.x.start or right > self.width or top < 2 or bottom > self.y.start:
            return False
        return not any(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in taken)

    def right_labels(self, labels: Sequence[tuple[float, str, Ink]]) -> None:
        """Names of lines at their right ends (y, name, ink), pushed apart."""
        wanted = sorted(
            ((self.y(y), name, ink) for y, name, ink in labels), key=lambda one: one[:2]
        )
        places: list[float] = []
        for at, *_ in wanted:
            places.append(max(at, places[-1] + _LINE) if places else at)
        low = self.y.start + 4  # push back what fell out at the bottom
        for i in range(len(places) - 1, -1, -1):
            places[i] = min(places[i], low - (len(places) - 1 - i) * _LINE)
        for at, (_, name, ink) in zip(places, wanted, strict=True):
            style = f"label text {ink.style}"
            self.parts.append(el("text", name, class_=style, x=self.x.stop + 8, y=at + 4))

    def done(self, legend: Sequence[tuple[str, Ink]] = ()) -> Markup:
        """The figure: its title, a legend of (name, ink), the drawing."""
        box = f"0 0 {self.width:.0f} {self.height:.0f}"
        drawing = el("svg", self.parts, viewBox=box, role="img", aria_label=self.title)
        keys = [el("span", _key(ink), name, class_="key") for name, ink in legend]
        caption = el("figcaption", el("b", self.title), el("span", keys, class_="keys"))
        return el("figure", caption, drawing)


def _key(ink: Ink) -> Markup:
    drawn = _shape(ink, 6.0, 6.0, None)
    return el("svg", drawn, viewBox="0 0 12 12", class_="mark", aria_hidden="true")


def _shape(ink: Ink, x: float, y: float, hint: str | None) -> Markup:
    title, style = el("title", hint) if hint else None, f"point {ink.style}"
    if ink.shape == "circle":
        return el("circle", title, class_=style, cx=x, cy=y, r=4.2)
    if ink.shape == "square":
        return el("rect", title, class_=style, x=x - 3.8, y=y - 3.8, width=7.6, height=7.6)
    corners = {
        "triangle": ((0, -5), (4.8, 3.8), (-4.8, 3.8)),
        "diamond": ((0, -5.2), (5.2, 0), (0, 5.2), (-5.2, 0)),
    }[ink.shape]
    places = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return el("polygon", title, class_=style, points=places)


def _tick_text(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
