"""How far a long step is: a bar on a terminal, and a small file that ``fpbench status`` reads from anywhere.

A job names its file in the environment (``FILE``); bars of its kernel write to it at most every ``EVERY`` seconds. Whatever goes
wrong with the file is ignored: it is never worth a job.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

FILE = "FPBENCH_PROGRESS"
EVERY = 2.0  # seconds


def note(**facts: object) -> None:
    """Write facts into the file of this job, beside those that are there, if it has one."""
    path = Path(os.environ.get(FILE) or os.devnull)
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known or "pid" in facts:  # the job itself begins the file, and removes it
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**known, **facts, "updated": time.time()}))
            temporary.replace(path)


def wait(title: str) -> None:
    """Say that a step waits for its turn, or begins."""
    note(title=f"waiting or beginning: {title}", stage="", total=None, done=0, unit="image", rate=0.0)


class Progress(tqdm):
    """A bar that shows itself on terminals only and is noted; ``stage`` says more than its title."""

    def __init__(self, iterable: Iterable | None = None, **settings: Any) -> None:
        super().__init__(iterable, disable=None, **settings)
        self.facts = {"title": settings["desc"], "total": settings["total"], "unit": settings["unit"]}
        self.stage, self.first, self.began, self.told = "", settings.get("initial", 0), time.monotonic(), 0.0
        self.done = self.first

    def __iter__(self) -> Iterator:
        """Yield the items, counting them."""
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: float = 1) -> bool | None:
        """Count n more."""
        self.done, now = self.done + n, time.monotonic()
        if now - self.told > EVERY or self.done == self.facts["total"]:
            self.told = now
            rate = (self.done - self.first) / max(now - self.began, 1e-9)
            note(**self.facts, stage=self.stage, done=self.done, rate=rate)
        return super().update(n)
