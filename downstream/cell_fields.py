"""What the fields of a line of results may hold: checked before anything is made of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from downstream.scoring import METRICS
from hear_pretrainedsed.registry import unknown

_TEXT = (
    *("id", "checkpoint", "weights_sha256", "task", "task_version", "task_digest", "protocol"),
    *("mode", "main_metric", "unit", "version", "created"),
)
_NUMBERS = ("value", "micro", "macro")
_SAMPLING = {"n_units": int, "n_strata": int, "n_smallest": int, "digest": str}
_WORDS = {str: "text", int: "a whole number", dict: "an object"}


def check(content: Mapping[str, Any]) -> None:
    """`ValueError`, naming the field, for the first value of another kind than a cell has."""
    for name in _TEXT:
        _is(name, content[name], str)
    for name in ("seed", "n_test_frames"):
        _is(name, content[name], int)
    for name in ("config", "recipe", "platform", "seconds", "sampling", "metrics"):
        _is(name, content[name], dict)
    if content["commit"] is not None:
        _is("commit", content["commit"], str)
    chosen = content["chosen"]
    if not isinstance(chosen, list) or not all(isinstance(one, dict) for one in chosen):
        raise _wrong("chosen", chosen, "a list of objects")
    for name, value in content["seconds"].items():
        _is_number(f"seconds.{name}", value)
    _has("sampling", content["sampling"], _SAMPLING)
    for name, kind in _SAMPLING.items():
        _is(f"sampling.{name}", content["sampling"][name], kind)
    _check_metrics(content["metrics"], content["main_metric"])


def _check_metrics(metrics: Mapping[str, Any], main: str) -> None:
    if main not in metrics:
        raise ValueError(f"the field 'main_metric': {unknown('metric', main, list(metrics))}")
    for name, one in metrics.items():
        place = f"metrics.{name}"
        if name not in METRICS:
            raise ValueError(f"the field 'metrics': {unknown('metric', name, METRICS)}")
        _is(place, one, dict)
        _has(place, one, (*_NUMBERS, "per_class", "interval", "draws"))
        for part in _NUMBERS:
            _is_number(f"{place}.{part}", one[part])
        _is(f"{place}.per_class", one["per_class"], dict)
        for label, value in one["per_class"].items():
            _is_number(f"{place}.per_class.{label}", value)
        within = one["interval"]
        if within is not None:
            if not isinstance(within, list) or len(within) != 2:
                raise _wrong(f"{place}.interval", within, "two numbers, or null")
            for end in within:
                _is_number(f"{place}.interval", end)
        _is(f"{place}.draws", one["draws"], str)
        try:
            n_bytes = len(base64.b64decode(one["draws"], validate=True))
        except ValueError:
            n_bytes = -1
        if n_bytes % 4:
            raise _wrong(f"{place}.draws", one["draws"], "base64 of float32")


def _is(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _wrong(name, value, _WORDS[kind])


def _is_number(name: str, value: object) -> None:
    """A number as `cells.plain` writes it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number or value is None or value in ("inf", "-inf")):
        raise _wrong(name, value, 'a number, null, "inf" or "-inf"')


def _has(name: str, value: Mapping[str, Any], wanted: Mapping[str, Any] | tuple[str, ...]) -> None:
    if apart := sorted(value.keys() ^ set(wanted)):
        what = "is missing" if apart[0] in wanted else "is none of this schema"
        raise ValueError(f"the field '{name}.{apart[0]}' {what}")


def _wrong(name: str, value: object, wanted: str) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return ValueError(f"the field {name!r} is {shown}; it has to be {wanted}")
