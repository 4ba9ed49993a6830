"""Words of other people's tables: what they most probably mean, and how a word is written in YAML.

The words themselves are ``vocabulary.yaml``. A word is translated only if every part of it that says something means the same
class: "Fetal abdomen" and "Bauch quer" are, "head/abdomen" and "4-chamber view" are left to a person.
"""

import json
import re
import unicodedata
from functools import cache
from pathlib import Path

import yaml

UNKNOWN = "?"  # a word that a person must translate


@cache
def facts() -> dict:
    """Return what ``vocabulary.yaml`` says."""
    return yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """Return a text in small letters without accents, its parts (letters, or digits) with a blank between."""
    letters = unicodedata.normalize("NFKD", text.casefold().replace("ß", "ss"))
    bare = "".join(one for one in letters if not unicodedata.combining(one))
    return (
        " ".join(re.sub(r"\btrans[\s_-]+", "trans", bare.replace("'", " ").replace("_", " ")).split()) if bare else ""
    )


def parts(text: str) -> list[str]:
    """Return the words of a text, as ``plain`` gives them."""
    return re.findall(r"[^\W\d_]+|\d+", plain(re.sub(r"(?<=[a-zà-ÿ])(?=[A-Z])", " ", text)))


def guess(column: str, word: str) -> str | None:
    """Return what a word of one of our columns means in our words (None: takes no part), or UNKNOWN."""
    known = {plain(one): ours for ours, words in facts()["words"].get(column, {}).items() for one in words}
    if (text := " ".join(parts(word))) in known:
        return known[text]
    for phrase in (one for one in known if " " in one and f" {one} " in f" {text} "):
        text = f" {text} ".replace(f" {phrase} ", f" {phrase.replace(' ', '_')} ")
    told = [one.replace("_", " ") for one in text.split() if one not in facts()["with"]]
    found = {known.get(one, UNKNOWN) for one in told}
    return found.pop() if len(found) == 1 else UNKNOWN


def roles(name: str) -> set[str]:
    """Return which of our columns a column may be by its name; "private": its cells may name a person."""
    words = parts(name)
    return {
        ours for ours, names in facts()["columns"].items() for one in names if any(_named(one, word) for word in words)
    }


def _named(one: str, word: str) -> bool:
    return word == one or (len(one) > 3 and (word.startswith(one) or word.endswith(one)))


def quoted(text: str | None) -> str:
    """Return a word as it is written in YAML: in quotes where it would be something else without them."""
    if text is None or text == UNKNOWN:
        return "null"
    try:
        same = yaml.safe_load(text) == text and yaml.safe_load(f"{{{text}: {text}}}") == {text: text}
    except (yaml.YAMLError, ValueError, TypeError):
        same = False
    return text if same and re.fullmatch(r"[\w./+-]( ?[\w./+()-])*", text) else json.dumps(text, ensure_ascii=False)
