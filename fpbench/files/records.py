"""YAML into frozen dataclasses: unknown keys, missing keys and wrong types are errors that name the key."""

import difflib
import reprlib
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin

import yaml

from fpbench.errors import InputError


def plain_yaml(text: str | bytes, where: str) -> Any:
    """Return what YAML says, plain values alone; InputError names ``where``."""
    try:
        return yaml.safe_load(text)
    except Exception as error:  # dates, numbers and deep nesting raise others than YAMLError
        raise InputError(f"{where}: not YAML of plain values ({str(error)[:400] or type(error).__name__})") from None


def build(kind: type, content: Any, where: str, also: Sequence[str] = (), **given: Any) -> Any:
    """Return an instance of a dataclass from a table of its fields.

    Parameters
    ----------
    where
        What errors begin with.
    also
        Keys that the caller has taken out of the table; named where a key is unknown.
    given
        Fields that the caller sets, and the table may not.

    Raises
    ------
    InputError
        Not a table, an unknown or missing key, or a wrong type.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a table of keys and values, found {type(content).__name__}")
    known = {item.name: item for item in fields(kind) if item.name not in given}
    for key in content:
        if key not in known:
            names = [*known, *also]
            close = difflib.get_close_matches(str(key), names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(names)}"
            raise InputError(f"{where}: unknown key {key!r}: {hint}")
    needed = [n for n, item in known.items() if MISSING is item.default is item.default_factory and n not in content]
    if needed:
        raise InputError(f"{where}: missing {', '.join(needed)}")
    return kind(**given, **{key: convert(known[key].type, value, f"{where}: {key}") for key, value in content.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """Return a value of YAML as the type of a field: a plain type, a list of such, or a dataclass; InputError otherwise."""
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {reprlib.repr(value)}")
        return [convert(get_args(kind)[0], item, f"{where}[{row}]") for row, item in enumerate(value)]
    if isinstance(kind, type) and is_dataclass(kind):
        return build(kind, value, where)
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise InputError(f"{where}: expected a number below 2^63, found another")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: expected {kind.__name__}, found {reprlib.repr(value)}")
    if kind is str and not value.replace("\n", " ").isprintable():
        raise InputError(f"{where}: expected printable text, found {reprlib.repr(value)}")
    return value
