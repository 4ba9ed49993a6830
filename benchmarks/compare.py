"""Print what changed between two runs of a row, per case: our cost or rate, and the value that a goal is about.

python benchmarks/compare.py OLD.json NEW.json
"""

import json
import sys
from pathlib import Path


def read(path: str) -> dict[tuple[str, str], dict]:
    """Return the cases of a row by key and case."""
    return {(one["key"], one["case"]): one for one in json.loads(Path(path).read_text())["entries"]}


def change(old: float | None, new: float | None) -> str:
    """Return two numbers and their change in percent."""
    if old is None or new is None:
        return "-"
    return f"{old:.4g} -> {new:.4g}" + (f" ({new / old - 1:+.1%})" if old else "")


def lines(old: str, new: str) -> list[str]:
    """Return the text, one line per case."""
    before, after = read(old), read(new)
    made = [
        f"{key}: {case}: only in {old if (key, case) in before else new}" for key, case in before.keys() ^ after.keys()
    ]
    for key, case in (one for one in after if one in before):
        was, now = before[key, case], after[key, case]
        moved = ", ".join(f"{name} {change(was[name], now[name])}" for name in ("ours", "value"))
        made.append(f"{key}: {case} ({now['unit']}): {moved}")
    return sorted(made)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print("\n".join(lines(*sys.argv[1:])))
