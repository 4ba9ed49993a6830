"""Who was scanned: the cohorts, read exactly as their archives are.

``load_cohort`` gives a frame with one row per image, sorted by ``image_id`` so that the order of rows in the label file
changes nothing, and the columns of ``COLUMNS``. A *group* is a set of patients linked by at least one pixel-identical
image: splits and resampling use groups, because two patient numbers that share a picture may be one patient.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fpbench import images
from fpbench.cohorts import acouslic, africa, phantoms, spain, table
from fpbench.cohorts.cells import ROW
from fpbench.cohorts.download import fetch
from fpbench.cohorts.source import COLUMNS, CONFOUNDERS, Source, check_counts, check_rows, has_sweeps, locate
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths

COLUMNS = (*COLUMNS[:3], "group", *COLUMNS[3:])  # of a cohort's frame: a label file knows no groups
KNOWN = (spain.SOURCE, africa.SOURCE, acouslic.SOURCE, *phantoms.SOURCES, *phantoms.MORE)
SOURCES: dict[str, Source] = {source.name: source for source in KNOWN}


def register_cohort(source: Source) -> None:
    """Add a cohort of your own to SOURCES, e.g. from an extension of a study.

    Parameters
    ----------
    source
        Its facts; ``source.read`` returns one row per image with the columns of ``cohorts.source.COLUMNS`` and those of
        ``source.further``, and ``source.counts`` are images, held to at every reading.

    Raises
    ------
    InputError
        The name is taken.
    """
    if source.name in SOURCES:
        raise InputError(f"there is a cohort {source.name!r} already: expected a new name")
    SOURCES[source.name] = source


@dataclass(frozen=True)
class Cohort:
    """Images of one population and what is known of them."""

    source: Source
    frame: pd.DataFrame  # one row per image: COLUMNS, further ones of the source, those of images.SCAN; index 0..N-1
    absent: int = 0  # images of the label file whose files are not there
    geometries: tuple[images.Geometry, ...] = ()  # that will be wanted of all its pictures: made in one pass

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.frame)

    @property
    def name(self) -> str:
        """Return the name, first part of every image_id."""
        return self.source.name

    @property
    def confounder(self) -> str | None:
        """Return the column that goes with the class besides anatomy, None if it has one value only."""
        return self.source.confounder if self.frame[self.source.confounder].nunique() > 1 else None

    def image(self, image_id: str) -> np.ndarray:
        """Return one picture as in its file: uint8, (H, W) or (H, W, 3)."""
        rows = self.frame.loc[self.frame["image_id"] == image_id, "path"]
        if rows.empty:
            like = self.frame["image_id"].iat[0]
            raise InputError(f"no image {image_id!r} in cohort {self.name}: expected one like {like!r}")
        return images.decode(rows.iloc[0], self.source.bits)

    def array(self, geometry: images.Geometry) -> np.ndarray:
        """Return all pictures in one geometry (see ``images.cached_images``), in the order of ``frame``."""
        return images.cached_images(
            self.frame["path"].tolist(), self.frame, geometry, self.source.bits, self.geometries
        )

    def masks(self, geometry: images.Geometry) -> np.ndarray:
        """Return the masks of all pictures in one geometry, in the order of ``frame``, from the cache of pictures.

        Parameters
        ----------
        geometry
            With the interpolation "nearest": a mask has no values in between.

        Returns
        -------
        numpy.ndarray
            uint8, (N, size, size): 0, 1 optimal plane, 2 sub-optimal plane.

        Raises
        ------
        InputError
            Another interpolation, or the cohort has no masks.
        """
        if not (mask_of := self.source.mask_of):
            raise InputError(f"{self.name} has no masks: expected a cohort that has, such as acouslic")
        if geometry.interpolation != "nearest":
            raise InputError(f"masks: expected the interpolation nearest, found {geometry.interpolation}")
        files = [mask_of(path) for path in self.frame["path"]]
        return images.cached_images(files, images.scan(files), geometry)

    def by_case(self) -> "Cohort":
        """Return the cohort with the case as group, as its published split cuts; InputError where there are no cases."""
        if not has_sweeps(self.frame):
            raise InputError(f"{self.name} has no cases: expected a cohort of sweeps, such as acouslic")
        return replace(self, frame=self.frame.assign(group=self.name + "/" + self.frame["case"]))

    def fingerprint(self) -> str:
        """Return a digest of labels and pixels: equal for equal cohorts, wherever they lie."""
        known = [self.frame[c].astype(str).tolist() for c in (*COLUMNS, "pixels") if c != "path"]
        return artifacts.digest([*known, *([c, self.frame[c].astype(str).tolist()] for c in self.source.further)])

    def select(self, rows: Iterable) -> "Cohort":
        """Return the cohort without the rows where the mask is false. Groups stay as they are; no geometries are wanted of it."""
        return replace(self, frame=self.frame[np.asarray(rows, bool)].reset_index(drop=True), geometries=())

    def pictures(self, count: int, seed: int = 0) -> list[np.ndarray]:
        """Return some pictures, drawn at random, each of another patient."""
        rows = self.frame.sample(frac=1, random_state=seed).drop_duplicates("patient").head(count)
        return [images.decode(path, self.source.bits) for path in rows["path"]]

    def examples(
        self, label: str, classes: Iterable[str], count: int = 4, seed: int = 0
    ) -> dict[str, list[np.ndarray]]:
        """Return some pictures of every class that occurs, each of another patient where there are enough."""
        found = {}
        for name in classes:
            of_class = self.frame[self.frame[label] == name].sample(frac=1, random_state=seed)
            if len(of_class):
                chosen = of_class.drop_duplicates("patient").head(count)
                found[name] = [images.decode(path, self.source.bits) for path in chosen["path"]]
        return found

    def first(self, label: str, name: str) -> np.ndarray:
        """Return the first picture of a class, or of all where the class does not occur."""
        return images.decode(self.frame["path"].iat[int((self.frame[label] == name).argmax())], self.source.bits)

    def describe(self) -> str:
        """Return one line: images, patients, groups, what is absent."""
        found = f"{self.name}: {len(self):,} images, {self.frame['patient'].nunique():,} patients, "
        found += f"{self.frame['group'].nunique():,} groups"
        return found + (f" ({self.absent:,} images of the label file are absent)" if self.absent else "")


def load_cohort(name: str, root: str | Path | None = None, missing: str = "error", look: bool = True) -> Cohort:
    """Read a cohort from the folder of its archive.

    Parameters
    ----------
    name
        ``"spain"``, ``"africa"`` or another name of ``SOURCES``; or a YAML file that describes a cohort (``cohorts.table``).
    root
        The folder with the label file, or one that holds such a folder. Default: ``<data>/<name>``; a YAML file says it itself.
    missing
        ``"error"``: every image must be there. ``"drop"``: those that are not are left out and counted in ``absent``.
    look
        Open every picture. Else, for who only counts, the columns of ``images.SCAN`` are not there, and every picture is taken for
        another (``pixels`` is its ``image_id``), so that the group is the patient.

    Returns
    -------
    Cohort
        ``frame`` has N rows, one per image, with COLUMNS, further columns of the table, and those of ``images.SCAN`` (sizes in
        pixels).

    Raises
    ------
    InputError
        The labels or pictures are not what the archive holds.
    MissingError
        The folder, or images in it, are not there.
    """
    source, folder, listed, there = list_images(name, root, missing)
    frame = listed[there].reset_index(drop=True)
    if not look:
        return Cohort(source, linked(frame.assign(pixels=frame["image_id"])), absent=int((~there).sum()))
    frame = pd.concat([frame, images.scan(frame["path"].tolist(), source.bits, images.THUMBNAIL)], axis=1)
    if len(bad := frame.loc[frame["error"] != "", ["image_id", "error"]]):
        first = ": ".join(bad.iloc[0])
        raise InputError(f"{len(bad)} unreadable pictures in {folder}, the first is {first}")
    frame = linked(frame)
    return Cohort(source, frame, absent=int((~there).sum()))


def source_of(name: str | Path) -> Source:
    """Return the facts of a cohort by its name, or by the YAML file that describes it; InputError names the known ones."""
    if str(name) in SOURCES:
        return SOURCES[str(name)]
    if (kind := Path(name).suffix.lower()) in (".yaml", ".yml"):
        return table.describe(name)
    how = f"a table needs a description: `fpbench init-cohort {name}` writes one; " if kind in table.KINDS else ""
    wanted = f"expected one of {', '.join(SOURCES)}, one of an extension, or a YAML file that describes one"
    raise InputError(f"unknown cohort {str(name)!r}: {how}{wanted}")


def count_images(source: Source) -> int:
    """Return how many images a cohort has: as published or expected, else the rows of its table."""
    known = source.counts.get("total", {}).get("images")
    return len(source.read(source.table.path, source.name)) if known is None and source.table else known or 0


def pictures_in(source: Source, folder: Path) -> list[list]:
    """Return names and bytes of the pictures of a cohort, sorted: those of its table, and every PNG in its folder.

    One that is not there has -1 bytes. Of a table that cannot be read only the PNG files count; a file that describes a cohort
    names all of its pictures; of a cohort with masks stacks and masks count.
    """
    if source.mask_of:
        stacks = dict.fromkeys(
            images.file_of(folder / path) for path in source.read(folder / source.csv, source.name)["path"]
        )
        files = [*stacks, *map(source.mask_of, stacks)]
        return sorted([str(one.relative_to(folder)), one.stat().st_size if one.is_file() else -1] for one in files)
    sizes: dict[str, int] = {}
    if not source.table:
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*.png")}
    try:
        named = source.read(folder / source.csv, source.name)
    except InputError:
        if source.table:
            raise
        return sorted([name, size] for name, size in sizes.items())
    for name, path in zip(named["image_id"] if source.table else named["path"], named["path"], strict=True):
        if name not in sizes and (source.table or not str(path).endswith(".png")):
            file = images.file_of(folder / path)
            sizes[str(name)] = file.stat().st_size if file.is_file() else -1
    return sorted([name, size] for name, size in sizes.items())


def changed(source: Source, files: Sequence[Path], keep: bool = True) -> list[Path]:
    """Return which files of some pictures and of their masks changed under one time and size, as ``images.verify`` has it."""
    masks = [source.mask_of(path) for path in files] if source.mask_of else []
    return images.verify(files, keep) + images.verify(masks, keep)


def load_labels(name: str | Path, root: str | Path | None = None) -> Cohort:
    """Read the label file of a cohort alone, where its pictures are not there.

    Returns
    -------
    Cohort
        As ``load_cohort``, without the columns of ``images.SCAN``; every picture is taken for another (``pixels`` is its ``image_id``),
        so that the group is the patient. ``order`` is the place of the row in the label file, from 0.
    """
    source, folder = folder_of(name, root)
    rows = read_labels(source, folder)
    frame = rows.assign(order=range(len(rows))).sort_values("image_id", ignore_index=True)
    frame.insert(3, "group", frame["patient"])
    return Cohort(settled(source, frame), frame.assign(pixels=frame["image_id"]), absent=len(frame))


def folder_of(name: str | Path, root: str | Path | None = None) -> tuple[Source, Path]:
    """Return the facts of a cohort and the folder that holds its label file; MissingError says how to get it."""
    source = source_of(name)
    if source.table:
        if root:
            raise InputError(f"{name} says itself where its table and images lie: expected no root, found {root}")
        return source, source.table.path.parent
    root = Path(root) if root else paths.data() / name
    if source.prepare:
        source.prepare(root)
    return source, locate(root, source)


def list_images(
    name: str | Path, root: str | Path | None, missing: str
) -> tuple[Source, Path, pd.DataFrame, np.ndarray]:
    """Return the facts of a cohort, its folder, and what `read_images` finds there."""
    source, folder = folder_of(name, root)
    rows, there = read_images(source, folder, missing)
    return settled(source, rows), folder, rows, there


def settled(source: Source, rows: pd.DataFrame) -> Source:
    """Return the facts of a cohort with the column that goes with the class, if they do not say it: the first of two values or more."""
    several = [column for column in CONFOUNDERS if rows[column].nunique() > 1]
    return replace(source, confounder=source.confounder or [*several, *CONFOUNDERS][0])


def read_labels(source: Source, folder: Path) -> pd.DataFrame:
    """Return the checked rows of a label file, in its order."""
    label_file = source.table.path if source.table else folder / source.csv
    rows = source.read(label_file, source.name)
    check_rows(rows, label_file)
    check_counts(rows, source, label_file)
    return rows


def read_images(source: Source, folder: Path, missing: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the checked label rows, sorted, with absolute paths, and which of their files are there. Only reads."""
    if missing not in ("error", "drop"):
        raise InputError(f"missing={missing!r}: expected 'error' or 'drop'")
    rows = read_labels(source, folder).sort_values("image_id")
    rows["path"] = [folder / path for path in rows["path"]]
    there = np.array([os.path.isfile(images.file_of(path)) for path in rows["path"]])
    if (missing == "error" and not there.all()) or not there.any():
        gone = rows[~there]
        row = f" (row {gone.index[0]})" if rows.index.name == ROW else ""
        where, how = folder, "complete the archive, or load what is there with missing='drop'"
        if source.table:
            where, how = source.table.folder, source.table.advise(gone)
        lost = f"{len(gone):,} of {len(rows):,} images of {source.name} are not in {where}"
        raise MissingError(f"{lost}, the first is {gone['path'].iat[0]}{row}: {how}")
    return rows.reset_index(drop=True), there


def linked(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with its groups, as ``group_patients`` has them; pictures that are ``images.BLANK`` link nobody."""
    frame = frame.copy()
    frame.insert(3, "group", group_patients(frame["patient"], shown(frame)))
    return frame


def shown(frame: pd.DataFrame) -> pd.Series:
    """Return what may link the patients of a frame: the hash of the picture; of one grey value, as before the probe touches, its name."""
    if "note" not in frame:  # nobody has looked at the pictures
        return frame["pixels"]
    return frame["pixels"].where(~frame["note"].str.endswith(images.BLANK), frame["image_id"])


def group_patients(patients: pd.Series, pixels: pd.Series) -> np.ndarray:
    """Link patients that share a pixel-identical image.

    Returns
    -------
    numpy.ndarray
        For every image the smallest patient key of its connected component: independent of the order of rows.
    """
    names, patient = np.unique(patients.to_numpy(str), return_inverse=True)
    pictures, picture = np.unique(pixels.to_numpy(str), return_inverse=True)
    total = len(names) + len(pictures)
    edges = coo_matrix((np.ones(len(patient)), (patient, len(names) + picture)), shape=(total, total))
    component = connected_components(edges, directed=False)[1][patient]
    return patients.astype(str).groupby(component).transform("min").to_numpy()


def distinct(frame: pd.DataFrame, label: str) -> np.ndarray:
    """Return which rows a de-duplicated view keeps.

    Of pixel-identical images with one label the first by ``image_id`` is kept; with two labels all are dropped.
    """
    labels = frame[label].fillna("").groupby(frame["pixels"]).transform("nunique")
    return (~frame["pixels"].duplicated() & (labels == 1)).to_numpy()


def pictures_of(table: pd.DataFrame, cohorts: Iterable[Cohort]) -> list[np.ndarray]:
    """Return the picture of every row of a table that names ``cohort`` and ``image_id``."""
    by_name = {cohort.name: cohort for cohort in cohorts}
    return [by_name[row.cohort].image(row.image_id) for row in table.itertuples()]


def fetch_cohort(name: str, root: str | Path | None = None) -> Path:
    """Download a cohort into ``<root>/<name>`` (default root: the data folder), check MD5 and published counts, return the folder."""
    source = SOURCES.get(name)
    if source is None or source.archive is None:
        public = ", ".join(known for known, one in SOURCES.items() if one.archive)
        raise InputError(f"no archive is known for {name!r}: expected one of {public}")
    return fetch(source.archive, root or paths.data(), verify=lambda folder: list_images(name, folder, "error"))
