"""YAML into frozen dataclasses: unknown keys, missing keys and wrong types are errors that name the key."""

import difflib
import reprlib
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin

import yaml

from fpbench.errors import InputError


class _TextKeys(yaml.SafeLoader):
    """Keys are text as they stand (``yes``, ``012``), and none stands twice in a table."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        own = [str(key.value)[:100] for key, _ in node.value]
        if bad := [key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            raise yaml.MarkedYAMLError(problem="expected keys that are words", problem_mark=bad[0].start_mark)
        if twice := [key for key in own if own.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]!r} stands twice", problem_mark=node.start_mark)
        self.flatten_mapping(node)
        return {str(key.value): self.construct_object(value, deep=True) for key, value in node.value}


def plain_yaml(text: str | bytes, where: str, text_keys: bool = False) -> Any:
    """Return what YAML says, plain values alone; ``text_keys``: keys are words of a table; InputError names ``where``."""
    try:
        return yaml.load(text, _TextKeys if text_keys else yaml.SafeLoader)
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
    """Return a value of YAML as the type of a field: a plain type, a list, tuple or table of such, or a dataclass; InputError otherwise."""
    if (origin := get_origin(kind)) in (list, tuple):
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {reprlib.repr(value)}")
        return origin(convert(get_args(kind)[0], item, f"{where}[{row}]") for row, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a table of keys and values, found {reprlib.repr(value)}")
        one, other = get_args(kind)
        return {convert(one, key, where): convert(other, item, f"{where}: {key}") for key, item in value.items()}
    if origin is UnionType:  # as what the value looks like
        kinds = get_args(kind)
        fitting = [one for one in kinds if isinstance(value, get_origin(one) or one)]
        return convert((fitting or kinds)[0], value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return build(kind, value, where)
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise InputError(f"{where}: expected a number below 2^63, found another")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        quotes = ": write it in quotes" if kind is str and isinstance(value, bool | int | float) else ""
        raise InputError(f"{where}: expected {kind.__name__}, found {reprlib.repr(value)}{quotes}")
    if kind is str and not value.replace("\n", " ").isprintable():
        raise InputError(f"{where}: expected printable text, found {reprlib.repr(value)}")
    return value
