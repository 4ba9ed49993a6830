"""One walk over pictures in threads: the frames of a stack that is inflated from its start are read together, in turn, all else alone.

A walk holds one picture per thread, however many there are. What it makes does not depend on the number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from fpbench.files import machine
from fpbench.images import decoding


def groups(files: Sequence[Path], rows: Sequence[int] | None = None) -> list[list[int]]:
    """Return the rows of ``files`` (those of ``rows``) in groups that ``decoding.looks`` reads at once, by their first row."""
    found: dict[Path | int, list[int]] = {}
    numbers, counts = {}, {}
    for row in range(len(files)) if rows is None else rows:
        file, number = decoding.split(files[row])
        if number is not None and file not in counts:
            counts[file] = decoding.stacked(file)
        together = number is not None and number < counts[file]
        numbers[row] = number or 0
        found.setdefault(file if together else row, []).append(row)
    return [sorted(group, key=lambda row: numbers[row]) for group in found.values()]


def walk(work: Callable[[list[int]], Iterator], todo: Sequence[list[int]]) -> Iterator[None]:
    """Do some work on every group in threads; yield in the caller's whenever a row is done.

    Parameters
    ----------
    work
        What it yields counts as a row; when it is through, so do the others of its group. The first of its errors, in the order
        of the groups, is raised, and what has not begun is left.
    todo
        Groups of rows.
    """
    done: SimpleQueue[bool] = SimpleQueue()

    def run(group: list[int]) -> None:
        left = len(group)
        try:
            for _ in work(group):
                done.put(True)
                left -= 1
            for _ in range(left):
                done.put(True)
        except BaseException:
            done.put(False)
            raise

    with ThreadPoolExecutor(machine.workers()) as pool:
        jobs = [pool.submit(run, group) for group in todo]
        try:
            for _ in range(sum(map(len, todo))):
                if not done.get():
                    break
                yield
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
