"""The smallest cohorts on which every notebook runs: phantoms of few patients."""

from dataclasses import replace
from functools import partial

from fpbench.cohorts import phantoms, register_cohort
from fpbench.cohorts.phantoms import layout

for whole, kind, patients in zip(phantoms.SOURCES, ("spain", "africa"), (20, 4), strict=True):
    entries = getattr(layout, f"{kind}_entries")(patients=patients)
    drawn = replace(whole, name=f"micro-{kind}", counts=layout.counts(entries))
    prepare = partial(phantoms.ensure, kind=kind, patients=patients)
    register_cohort(replace(drawn, prepare=prepare, prepared=lambda root: (root / "phantom.json").is_file()))
