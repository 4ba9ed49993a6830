"""The smallest cohorts on which every notebook runs: phantoms of few patients."""

from dataclasses import replace
from functools import partial

from fpbench.cohorts import africa, phantoms, register_cohort, spain

for real, kind, patients in ((spain.SOURCE, "spain", 20), (africa.SOURCE, "africa", 4)):
    entries = getattr(phantoms, f"{kind}_entries")(patients=patients)
    whole = phantoms.source(real, kind, phantoms.counts(entries))
    prepare = partial(phantoms.ensure, kind=kind, patients=patients)
    register_cohort(
        replace(whole, name=f"micro-{kind}", prepare=prepare, prepared=lambda root: (root / "phantom.json").is_file())
    )
