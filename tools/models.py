"""Write MODELS.md from the catalogue: ``python tools/models.py``. A test compares."""

from fpbench.encoders.catalogue import Entry, published, table
from fpbench.files import paths


def text() -> str:
    """Return the text of MODELS.md."""
    return f"""# Models

Written from `fpbench/encoders/catalogue.yaml` by `tools/models.py`; a test compares.
No file of the four ultrasound models has been opened by us yet: names and shapes are from their code and from third parties.

{table().to_markdown(index=False, disable_numparse=True)}
{"".join(map(section, published()))}
## Any other model

`timm:NAME`, `open_clip:NAME/TAG` and `hf:NAME` (transformers) take any model of those libraries. The README shows how to register
an architecture of your own.
"""


def section(e: Entry) -> str:
    """Return what is known of the weights, licence and pretraining of one encoder."""
    s = e.source
    size = f"{s.size:,} bytes" if s.size else "size unknown"
    mark = f"SHA-256 `{s.sha256}`" if s.sha256 else "SHA-256 unknown, pinned on first use"
    return f"""
## {e.name}

- Weights: [{s.file}]({s.url}), {size}, {mark}; {"confirmed by a third party" if s.confirmed else "unconfirmed"}.
- Licence: {e.licence}. Gated: {e.gated}.
- Pretraining: {e.trained_on}. Saw the Spanish cohort: {e.saw_spain}; the African: {e.saw_africa} ({e.evidence}).
- Paper: {e.paper}. {e.note}
"""


if __name__ == "__main__":
    (paths.home() / "MODELS.md").write_text(text())
