"""How far a long step is: a bar on a terminal, a line in JupyterLab, and a small file that ``fpbench status`` reads from anywhere.

A job names its file in the environment (``FILE``); bars of its kernel write to it at most every ``EVERY`` seconds. Whatever goes
wrong with the file is ignored: it is never worth a job. The line replaces itself and is empty in the end; it is shown to people alone
(``is_watched``), so that nothing of it gets into a notebook that a program executes.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

FILE = "FPBENCH_PROGRESS"
EVERY = 2.0  # seconds


def note(**facts: object) -> None:
    """Write facts into the file of this job, beside those that are there, if it has one."""
    path = Path(os.environ.get(FILE) or os.devnull)
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if known or "pid" in facts:  # the job itself begins the file, and removes it
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**known, **facts, "updated": time.time()}), encoding="utf-8")
            temporary.replace(path)


def begin(title: str) -> None:
    """Note what a step without a bar does, or may be waiting for."""
    note(title=title, total=None, unit="", stage="", done=0, rate=0.0)


def words(told: dict) -> str:
    """Return what a bar has noted as text: title, stage, how far, how fast, how long."""
    text = ", ".join(part for part in (told.get("title", "starting"), told.get("stage")) if part)
    if not told.get("rate"):
        return text
    of, left = f" of {told['total']:,}" if told["total"] else "", (told["total"] or 0) - told["done"]
    text += f": {told['done']:,}{of} {told['unit']}s, {told['rate']:,.1f} {told['unit']}s/s"
    return text + (f", {span(left / told['rate'])} to go" if left > 0 else ", what follows is not counted")


def span(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def is_watched() -> bool:
    """Return whether a person looks on: this is a kernel, and its cell came from a front end that names it and can be asked for input.

    JupyterLab sends both with every cell (``cellId``, ``allow_stdin``); papermill, nbconvert (nbclient) and nbval say that nobody is there
    to be asked, and name no cell.
    """
    kernel = getattr(sys.modules["IPython"].get_ipython(), "kernel", None) if "IPython" in sys.modules else None
    request = (kernel.get_parent("shell") or {}) if kernel else {}
    return bool(request.get("content", {}).get("allow_stdin")) and "cellId" in request.get("metadata", {})


class Progress(tqdm):
    """A bar that shows itself on terminals, as a line to who looks on, and is noted; ``stage`` says more than its title."""

    line: Any = None  # in JupyterLab, once it takes longer than EVERY

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
            told = {**self.facts, "stage": self.stage, "done": self.done, "rate": rate}
            note(**told)
            if now - self.began > EVERY and self.done != self.facts["total"]:
                self._show(words(told))
        return super().update(n)

    def _show(self, text: str) -> None:
        if self.line:
            self.line.update({"text/plain": text}, raw=True)
        elif is_watched():
            from IPython.display import display

            self.line = display({"text/plain": text}, raw=True, display_id=True)

    def close(self) -> None:
        """End the bar; its line is empty then."""
        if self.line:
            self.line.update({"text/plain": ""}, raw=True)
            self.line = None
        super().close()
