"""Dataclasses from YAML mappings: unknown keys and wrong types are refused with the list of what is valid."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

from vitq.errors import InputError

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Any, where: str) -> T:
    """Build the dataclass `cls` from a mapping; `where` names it in errors, e.g. "train".

    Raises:
        InputError: `mapping` is no mapping or has a key that `cls` does not know.
    """
    if not isinstance(mapping, dict):
        raise InputError(f"{where}={mapping!r}: give a mapping of names to values")
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{where}: unknown key {key!r}; {hint}valid keys: {', '.join(known)}")
    try:
        return cls(**mapping)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def check_types(instance: Any, where: str) -> None:
    """Check each field of a dataclass against its annotation; whole numbers pass as floats, booleans not as numbers.

    Raises:
        InputError: names the field, its value and the type expected.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value, hint = getattr(instance, field.name), hints[field.name]
        if not _fits(value, hint):
            raise InputError(f"{where}.{field.name}={value!r}: expected {_spell(hint)}")


def require(condition: bool, where: str, name: str, value: Any, advice: str) -> None:
    """Raise InputError naming the field, its value and what to do unless `condition` holds."""
    if not condition:
        raise InputError(f"{where}.{name}={value!r}: {advice}")


def config_hash(mapping: dict[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a mapping, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(mapping, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or (value is None if hint is type(None) else isinstance(value, hint))


def _spell(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return " or ".join(repr(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "null"
    return {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), getattr(origin or hint, "__name__", str(hint)))
