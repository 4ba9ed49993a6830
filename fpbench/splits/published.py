"""The cut of arXiv:2507.22802: cases of blind sweeps, drawn once, 70 % to train, 10 % to validate, 20 % to test.

The rule is that of its authors' program: cases as the label table lists them, permuted by numpy's default generator with their seed.
"""

import numpy as np
import pandas as pd

from fpbench.cohorts import Cohort
from fpbench.errors import InputError

PARTS = ("train", "validation", "test")
SEED = 9872398152123123767126
ENDS = 0.7, 0.8  # shares of the cases at which training and validation end


def side(cohort: Cohort) -> pd.Series:
    """Return the part of every row of a cohort whose groups are cases (``Cohort.by_case``).

    Raises
    ------
    InputError
        It has no cases, lacks some, or its groups are not cases.
    """
    frame = cohort.by_case().frame
    if not (frame["group"] == cohort.frame["group"]).all():
        raise InputError(
            f"the published split of {cohort.name} is by case: expected `Cohort.by_case()`, found patients"
        )
    cases = frame.drop_duplicates("case").sort_values("case_row")
    known = cohort.source.counts.get("total", {}).get("cases", len(cases))
    if cases["case_row"].tolist() != list(range(known)):
        found = f"expected {known}, found {len(cases)}"
        raise InputError(f"the published split of {cohort.name} draws among all cases: {found}: complete the archive")
    drawn = np.random.default_rng(SEED).permutation(cases["case"].to_numpy(str))
    ends = [int(share * len(drawn)) for share in ENDS]
    part = np.repeat(PARTS, np.diff([0, *ends, len(drawn)]))
    return frame["case"].map(dict(zip(drawn.tolist(), part.tolist(), strict=True)))
