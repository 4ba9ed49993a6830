"""What the fuzzer makes files of: valid ones with damage, any JSON-like values, and pieces that readers stumble over."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

NASTY = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b'"', b";;", b",", b"=1+1", b"../../x", b"\n---\n", b": ", b"- ", b"!!python/name:os.system",
    b"&a [*a]", b"{a: ", b"[", b"!!int x", b"0x_", b"2026-99-99", b"9" * 400, b".nan", b"\x80\x02", b"cos\nsystem\n", b"R.", b"PAR1", b"PK\3\4",
    b'{"', b"\x1b[31m", "é²".encode(), b"A" * 300,
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """What reads, and what it is given."""

    suffix: str  # of the file
    read: Callable[[Path], object]
    inputs: st.SearchStrategy  # of bytes, or of what `write` takes
    write: Callable[[Path, object], object] = lambda path, content: path.write_bytes(content)
    refuses: int = 10  # of the few examples that the tests take, at least


def mutated(*valid: bytes) -> st.SearchStrategy[bytes]:
    """One to six changes of a valid file."""
    place = st.integers(0, 65535)
    piece = st.sampled_from(NASTY) | st.binary(max_size=8)
    change = st.tuples(st.sampled_from(["flip", "cut", "drop", "copy", "splice"]), place, place, piece)

    def apply(data: bytes, changes: list) -> bytes:
        for kind, one, two, extra in changes:
            start, end = sorted(len(data) * x >> 16 for x in (one, two))
            if kind == "flip" and data:
                data = data[:start] + bytes([data[start] ^ 1 << two % 8]) + data[start + 1 :]
            elif kind == "copy":
                data = data[:end] + data[start : start + 4096] + data[end:]
            elif kind != "flip":
                data = {
                    "cut": data[:start],
                    "drop": data[:start] + data[end:],
                    "splice": data[:start] + extra + data[start:],
                }[kind]
        return data

    return st.builds(apply, st.sampled_from(valid), st.lists(change, min_size=1, max_size=6))


def plain(leaves: st.SearchStrategy | None = None) -> st.SearchStrategy:
    """Any JSON-like value."""
    words = st.sampled_from(
        ["name", "cohorts", "encoders", "folds", "seed", "key", "encoder", "fingerprint", "sha256", "digest"]
    )
    leaves = leaves or st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | words
    return st.recursive(
        leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(words | st.text(max_size=5), x, max_size=4)
    )
