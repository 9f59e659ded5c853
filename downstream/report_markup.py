"""HTML and SVG as text in which everything that is not markup is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

_EMPTY = frozenset({"meta", "br", "wbr", "link"})
# Marks that turn the direction of writing: a name with one would show other names reversed.
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Markup(str):
    """Text that is markup already."""


def clean(text: object) -> str:
    """Text without what no page can show: control characters, halves of pairs, turns of writing."""
    return "".join(
        "\ufffd" if c in _TURNS or unicodedata.category(c) in ("Cc", "Cs") and c != "\n" else c
        for c in str(text)
    )


def text(content: object) -> Markup:
    """Markup of content: markup itself, text, numbers, lists of those; None is nothing."""
    if isinstance(content, Markup):
        return content
    if content is None:
        return Markup("")
    if isinstance(content, Iterable) and not isinstance(content, str):
        return Markup("".join(text(one) for one in content))
    return Markup(html.escape(clean(content), quote=False))


def el(tag: str, *content: object, **attributes: object) -> Markup:
    """An element. `class_` is `class`, `data_x` is `data-x`; an attribute that is None is left out.

    Numbers with a fraction are written with one decimal: they are places in a drawing.
    """
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {name}")
            continue
        shown = f"{value:.1f}" if isinstance(value, float) else str(value)
        written.append(f' {name}="{html.escape(clean(shown))}"')
    start = f"<{tag}{''.join(written)}>"
    return Markup(start if tag in _EMPTY else f"{start}{text(content)}</{tag}>")


def breakable(name: str) -> Markup:
    """A name that may be broken after its dots and underscores."""
    parts = clean(name).replace("_", "_\0").replace(".", ".\0").replace("+", "\0+").split("\0")
    return Markup(el("wbr").join(html.escape(part, quote=False) for part in parts))
