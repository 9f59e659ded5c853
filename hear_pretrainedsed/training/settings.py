"""Settings of a recipe as text, FIELD=VALUE."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hear_pretrainedsed.registry import unknown
from hear_pretrainedsed.training.augmentation import Augmentation

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    NoneType: "None",
    Augmentation: "set by its fields, as augmentation.mixup",
}

R = TypeVar("R")


def with_settings(recipe: R, settings: Iterable[str], fixed: Collection[str] = ()) -> R:
    """A recipe, a frozen dataclass, with other values, given as FIELD=VALUE.

    Fields of an augmentation are `augmentation.mixup` and `weak_augmentation.mixup`. Values are
    numbers, None, True, False, tuples, or text; where several numbers may stand, so may one.
    `fixed` are fields that cannot be set.

    Raises `ValueError` for a field that there is not (the nearest is named), a value of another
    kind than the field's annotation, and what the recipe refuses.
    """
    settable = [one.name for one in fields(recipe) if one.name not in fixed]
    changes: dict[str, object] = {}
    inner: dict[str, dict[str, object]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r}: wanted FIELD=VALUE")
        name = name.strip()
        part, dot, field_name = name.partition(".")
        if part not in settable:
            raise ValueError(unknown("field", name, settable))
        if not dot:
            changes[name] = _checked(recipe, name, _value(text), name)
            continue
        record = getattr(recipe, part)
        names = [one.name for one in fields(record)] if isinstance(record, Augmentation) else []
        if field_name not in names:
            raise ValueError(unknown("field", name, [f"{part}.{one}" for one in names] or [part]))
        inner.setdefault(part, {})[field_name] = _checked(record, field_name, _value(text), name)
    for part, values in inner.items():
        changes[part] = replace(getattr(recipe, part), **values)
    return replace(recipe, **changes)  # at once: some go together


def _checked(record: Any, name: str, value: object, told: str) -> object:
    """A value that is of the kind that its field is annotated with."""
    kind = get_type_hints(type(record))[name]
    if _is_several(kind) and not isinstance(value, tuple):
        value = (value,)
    if not _is_of(value, kind):
        raise ValueError(
            f"{told} is {value!r}; it was {getattr(record, name)!r}, and has to be {_text_of(kind)}"
        )
    return value


def _is_several(kind: Any) -> bool:
    """Whether it is a tuple of any length."""
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _is_of(value: object, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = get_args(kind)[:1] * len(value) if _is_several(kind) else get_args(kind)
        return len(value) == len(kinds) and all(map(_is_of, value, kinds))
    return type(value) in ((int, float) if kind is float else (kind,))  # True is no int here


def _text_of(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_text_of, get_args(kind)))
    if _is_several(kind):
        one = _text_of(get_args(kind)[0])
        return f"{one}, or several as ({one}, {one})"
    if get_origin(kind) is tuple:
        return f"({', '.join(map(_text_of, get_args(kind)))})"
    return _KINDS[kind]


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text.strip()
