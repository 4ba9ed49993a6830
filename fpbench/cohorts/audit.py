"""What a careful reader would want to know of a cohort before trusting a score on it.

Exact duplicates (same bytes, same pixels) are pairs of neighbours in a chain of copies, so that ``images - pairs`` is the
number of distinct pictures. Near duplicates are found by a perceptual hash and confirmed by correlation; they are reported
and never merged. Where images are frames of sweeps, they are looked for between cases alone: neighbouring frames are near copies. The
unit of a count is then the frame, but where it says case or sweep.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.fft import dctn

from fpbench import images
from fpbench.cohorts import Cohort, distinct, linked, list_images
from fpbench.cohorts.source import has_sweeps, totals
from fpbench.errors import InputError
from fpbench.tasks import QUALITIES, TASKS, Task

HASH_BITS = 256  # the 16 x 16 lowest frequencies of the 64 x 64 thumbnail
NEAR_BITS = 32  # at most so many of them differ
NEAR_CORRELATION = 0.99  # and the thumbnails correlate at least so much
NEAR_MOST = 100_000  # pairs that are listed, the most alike; all are counted
BLOCK = 512  # pictures that are compared with all others at once
CROSSED = {"machine": "plane", "operator": "machine", "centre": "plane", "official_split": "plane"}  # tables to print


@dataclass(frozen=True)
class Audit:
    """The findings. Every table is a tidy frame."""

    cohort: Cohort
    missing: list[str]  # image ids without a file
    unreadable: pd.DataFrame  # image_id, error
    pairs: pd.DataFrame  # exact duplicates: one row per pair
    near: pd.DataFrame  # near duplicates: one row per pair, with their correlation; the most alike NEAR_MOST
    near_total: int  # how many there are
    sweeps: pd.DataFrame | None = None  # of `Source.sweeps`: one row per sweep, annotated or not

    def summary(self) -> dict[str, int]:
        """Return the counts that a methods section quotes."""
        frame, pairs = self.cohort.frame, self.pairs
        found = {
            "files": len(frame),
            "distinct": int(frame["pixels"].nunique()),
            "pairs": len(pairs),
            "pairs across patients": int((~pairs["same_patient"]).sum()),
            "pairs across the split": int((~pairs["same_split"]).sum()),
            "pairs with two labels": int((~pairs["same_plane"]).sum()),
            "patient ids": int(frame["patient"].nunique()),
            "groups": int(frame["group"].nunique()),
            "kept after de-duplication": int(distinct(frame, _label(frame)).sum()),
            "near-duplicate pairs": self.near_total,
            "missing files": len(self.missing),
            "unreadable files": len(self.unreadable),
        }
        if self.sweeps is None:
            return found
        known = totals(frame)
        found |= {"cases": known["cases"], "sweeps": len(self.sweeps), "annotated sweeps": known["sweeps"]}
        return found | {f"frames {word}": int((frame["quality"] == word).sum()) for word in QUALITIES}

    def sentence(self) -> str:
        """Return the finding in one sentence."""
        n = self.summary()
        files = f"{self.cohort.name}: {n['distinct']:,} distinct pictures in {n['files']:,} files"
        copies = f"pairs of copies under two patient ids: {n['pairs across patients']:,}"
        split = f"across the published split: {n['pairs across the split']:,}"
        return f"{files}; {copies}, {split}; {n['patient ids']:,} patient ids are {n['groups']:,} groups."

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables that the command line prints after the summary."""
        cohort = self.cohort
        crossed = {rows: other for rows, other in CROSSED.items() if cohort.frame[rows].nunique() > 1}
        shown = {f"{rows} x {other} (images)": crosstab(cohort, rows, other) for rows, other in crossed.items()}
        shown[f"{cohort.source.confounder} x size (images)"] = crosstab(cohort, cohort.source.confounder, "size").T
        if self.sweeps is not None:
            annotated, masked = self.sweeps["annotated"], self.sweeps["runs"] > 0
            shown["sweep x quality (frames of annotated sweeps)"] = crosstab(cohort, "sweep", "quality")
            shown["AC without a mask (sweeps)"] = self.sweeps[annotated & ~masked]
            shown["mask without an AC (sweeps; nothing of it is used)"] = self.sweeps[masked & ~annotated]
        shown["unreadable"], shown["near duplicates"] = self.unreadable, self.near
        return {title: table for title, table in shown.items() if len(table)}

    def copies(self, most: int = 3) -> list[dict[str, np.ndarray]]:
        """Return some pairs of exact duplicates: name without the cohort -> picture."""
        names = self.pairs[["image", "copy"]].head(most).to_numpy().tolist()
        return [{name.split("/", 1)[1]: self.cohort.image(name) for name in pair} for pair in names]

    def __str__(self) -> str:
        """Return the summary as aligned lines, then what was done to pictures."""
        counts = [f"{value:>8,}  {name}" for name, value in self.summary().items()]
        return "\n".join([*counts, *images.notes(self.cohort.frame)])


def audit(name: str | Path, root: str | Path | None = None, missing: str = "drop") -> Audit:
    """Audit a cohort; unlike ``load_cohort`` it goes on over unreadable pictures and reports them."""
    source, folder, listed, there = list_images(name, root, missing)
    frame = listed[there].reset_index(drop=True)
    frame = pd.concat([frame, images.scan(frame["path"].tolist(), source.bits, images.THUMBNAIL)], axis=1)
    bad = frame["error"] != ""
    if bad.all():
        why = frame["error"].iat[0]
        raise InputError(f"none of the {len(frame)} pictures of {name} can be read, the first: {why}")
    good = linked(frame[~bad].reset_index(drop=True))
    near, near_total = near_pairs(good, source.bits)
    return Audit(
        Cohort(source, good, absent=int((~there).sum())),
        missing=listed.loc[~there, "image_id"].tolist(),
        unreadable=frame.loc[bad, ["image_id", "error"]].reset_index(drop=True),
        pairs=exact_pairs(good),
        near=near,
        near_total=near_total,
        sweeps=source.sweeps(folder / source.csv) if source.sweeps else None,
    )


def exact_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return pixel-identical neighbours: a picture and the next one like it, in the order of ``frame``."""
    positions = pd.Series(range(len(frame))).groupby(frame["pixels"].to_numpy())
    following = positions.shift(-1).dropna().astype(int)
    return _pair_table(frame, following.index, following)


def near_pairs(frame: pd.DataFrame, bits: int = 0) -> tuple[pd.DataFrame, int]:
    """Return pairs that look alike without being pixel-identical, the most alike NEAR_MOST, and how many there are.

    Parameters
    ----------
    frame
        N pictures, with the columns of ``images.scan``; of frames of sweeps, pairs of two cases are looked for.
    bits
        As of ``images.scan``.
    """
    first = np.flatnonzero(~frame["pixels"].duplicated().to_numpy())
    looked = frame.iloc[first].reset_index(drop=True)
    thumbs = images.cached_images(looked["path"].tolist(), looked, images.THUMBNAIL, bits)
    case = pd.factorize(looked["case"])[0] if has_sweeps(looked) else np.arange(len(looked))
    signs, flat = _compared(thumbs)
    found, total = pd.DataFrame({"left": first[:0], "right": first[:0], "correlation": flat[:0, 0]}), 0
    for start in range(0, len(signs), BLOCK):
        apart = (HASH_BITS - signs[start : start + BLOCK] @ signs[start:].T) / 2
        left, right = (places + start for places in np.nonzero(apart <= NEAR_BITS))
        asked = (left < right) & (case[left] != case[right])
        pairs = pd.DataFrame({"left": left[asked], "right": right[asked]})
        pairs["correlation"] = _correlations(flat, *pairs[["left", "right"]].to_numpy().T)
        pairs = pairs[pairs["correlation"] >= NEAR_CORRELATION]
        total += len(pairs)
        found = pd.concat([found, pairs]).sort_values("correlation", ascending=False, kind="stable").head(NEAR_MOST)
    table = _pair_table(frame, first[found["left"]], first[found["right"]])
    return table.assign(correlation=found["correlation"].to_numpy()), total


def _compared(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of thumbnails, a part at a time, what ``perceptual_signs`` does, and (N, 4096) with mean 0 and norm 1, float32."""
    signs, flat = np.empty((len(thumbs), HASH_BITS), np.float32), np.empty((len(thumbs), 64 * 64), np.float32)
    for start in range(0, len(thumbs), BLOCK):
        part = thumbs[start : start + BLOCK].astype(np.float32)
        part = part.mean(axis=-1) if part.ndim == 4 else part
        rows = part.reshape(len(part), -1) - part.mean(axis=(1, 2))[:, None]
        signs[start : start + BLOCK] = perceptual_signs(part)
        flat[start : start + BLOCK] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return signs, flat


def _correlations(flat: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the products of pairs of rows, some thousand pairs at a time."""
    parts = [flat[:0, 0]]
    for start in range(0, len(left), 8 * BLOCK):
        pair = left[start : start + 8 * BLOCK], right[start : start + 8 * BLOCK]
        parts.append(np.einsum("nd,nd->n", *(flat[rows] for rows in pair)))
    return np.concatenate(parts)


def perceptual_signs(thumbs: np.ndarray) -> np.ndarray:
    """Return the 256-bit DCT hash of (N, 64, 64) thumbnails as +1 / -1, (N, 256) float32."""
    low = dctn(thumbs, axes=(1, 2), norm="ortho")[:, :16, :16].reshape(len(thumbs), -1)
    return np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.float32)


def _label(frame: pd.DataFrame) -> str:
    """Return the column in which copies should agree."""
    return "quality" if has_sweeps(frame) else "plane"


def _pair_table(frame: pd.DataFrame, left: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Return one row per pair of rows, and what the two agree on."""
    one, two = (frame.iloc[rows].reset_index(drop=True) for rows in (left, right))
    table = pd.DataFrame({"image": one["image_id"], "copy": two["image_id"]})
    table["same_bytes"] = one["sha256"] == two["sha256"]
    for name, column in {"patient": "patient", "split": "official_split", "plane": _label(frame)}.items():
        same = (one[column] == two[column]) | (one[column].isna() & two[column].isna())  # not published: no difference
        table[f"same_{name}"] = same
    return table


def crosstab(cohort: Cohort, rows: str, columns: str) -> pd.DataFrame:
    """Count images by two columns, e.g. machine by plane; ``"size"`` stands for width x height."""
    frame = cohort.frame.assign(size=cohort.frame["width"].astype(str) + " x " + cohort.frame["height"].astype(str))
    table = pd.crosstab(frame[rows].fillna("not published"), frame[columns].fillna("not published"))
    order = next((task.classes for task in TASKS.values() if task.label == columns), QUALITIES)
    return table[[*(name for name in order if name in table), *sorted({*table} - {*order})]]


def classes_table(cohorts: list[Cohort], task: Task) -> pd.DataFrame:
    """Count images, patients and groups of each class of each cohort; a patient with two classes counts in both."""
    frame = pd.concat([one.frame.assign(cohort=one.name) for one in cohorts])
    grouped = frame.groupby(["cohort", task.label])
    table = grouped.agg(images=("patient", "size"), patients=("patient", "nunique"), groups=("group", "nunique"))
    order = [(one.name, name) for one in cohorts for name in task.classes if (one.name, name) in table.index]
    return table.loc[order].rename_axis(["cohort", "class"]).reset_index()


def summary_table(audits: list[Audit]) -> pd.DataFrame:
    """Return the summaries side by side, one column per cohort."""
    return pd.DataFrame({one.cohort.name: one.summary() for one in audits}).rename_axis("count").reset_index()


def sizes_table(cohorts: list[Cohort]) -> pd.DataFrame:
    """Count image sizes by the column that goes with the class (machine, country): the three commonest of each value."""
    tables = []
    for cohort in cohorts:
        sizes = crosstab(cohort, cohort.source.confounder, "size").stack().rename("images").reset_index()
        sizes.columns = ["value", "size", "images"]
        top = sizes[sizes["images"] > 0].sort_values("images", ascending=False, kind="stable").groupby("value").head(3)
        tables.append(top.sort_values("value", kind="stable").assign(cohort=cohort.name, by=cohort.source.confounder))
    return pd.concat(tables, ignore_index=True)[["cohort", "by", "value", "size", "images"]]
