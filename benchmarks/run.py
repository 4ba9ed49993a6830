"""Rerun rows of the benchmark, then write RESULTS.md anew.

python benchmarks/run.py ROW ... | --all      (names: the keys of rows.yaml)
"""

import subprocess
import sys

import yaml
from common import FOLDER


def main(names: list[str]) -> int:
    """Run the scripts of these rows; return the number that failed."""
    rows = yaml.safe_load((FOLDER / "rows.yaml").read_text())
    names = list(rows) if names == ["--all"] else names
    unknown = sorted(set(names) - set(rows))
    if unknown or not names:
        print(f"expected rows among {', '.join(rows)}, or --all; found {', '.join(unknown) or 'none'}", file=sys.stderr)
        return 2
    failed = 0
    for command in (command for name in names for command in rows[name]["run"]):
        script, *options = command.split()
        print(f"python benchmarks/{command}", flush=True)
        failed += subprocess.run([sys.executable, str(FOLDER / script), *options], check=False).returncode != 0
    return failed + subprocess.run([sys.executable, str(FOLDER / "report.py")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
