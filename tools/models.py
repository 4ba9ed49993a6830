"""Write MODELS.md from the catalogue: ``python tools/models.py``. A test compares."""

from fpbench.encoders.catalogue import CATALOGUE, FURTHER, PAPER, POPULATIONS, Entry, table
from fpbench.files import paths


def text() -> str:
    """Return the text of MODELS.md."""
    return f"""# Models

Written from `fpbench/encoders/catalogue.yaml` and `further.yaml` by `tools/models.py`; a test compares.
No file of the ultrasound models has been opened by us yet: names and shapes are from their code and from third parties.

The seven encoders of the paper:

{rows(PAPER)}

Further ones, of which the demo and the paper's studies run none. A miniature of theirs (NAME`-mini`) has no weights: `random`, or a file.

{rows(FURTHER)}
{"".join(section(CATALOGUE[name]) for name in (*PAPER, *FURTHER))}
## Any other model

`timm:NAME`, `open_clip:NAME/TAG` and `hf:NAME` (transformers) take any model of those libraries. The README shows how to register
an architecture of your own. An encoder that gives two embeddings for the same picture (twice, or alone and in a batch) is refused;
masked autoencoders of transformers are shown all patches, in order.

Their weights may be a file of yours, `weights: PATH`:

- `prefix: image_encoder.` names the root of the model's tensors in the file; the rest is left out and counted. Wrappers (`state_dict`, `model`,
  `teacher`, `student`, `ema`, `model_ema`) and `module.`, `_orig_mod.` are taken off; of a teacher and a student the teacher is taken,
  unless `prefix: student.` says otherwise. Which it was is in the provenance.
- An input size other than the file's (`options: {{img_size: 224}}` of timm, `{{image_size: 224}}` of transformers, `{{force_image_size: 224}}` of
  open_clip) resizes square position tables as the library itself does; the provenance and the table of encoders say `resized 37x37 -> 16x16`.
- `open_clip:NAME/TAG` takes activation, mean, std and resize from the TAG for a file too; without a TAG the table of encoders says what was
  assumed. `open_clip:PATH.json` reads a config file, of open_clip or of a repository.
- `hf:NAME` with `options: {{part: vision}}` takes the tower of pictures of a model with two (CLIP, SigLIP, MedSigLIP); `pooler` by default.
- A training checkpoint is mapped, not read: optimiser states stay on disk, except in files of torch < 1.6 (not zipped).
"""


def rows(names: tuple[str, ...]) -> str:
    """Return the facts of encoders as a table."""
    return table(names, POPULATIONS).to_markdown(index=False, disable_numparse=True)


def section(e: Entry) -> str:
    """Return what is known of the weights, licence and pretraining of one encoder."""
    s = e.source
    size = f"{s.size:,} bytes" if s.size else "size unknown"
    mark = f"SHA-256 `{s.sha256}`" if s.sha256 else "SHA-256 unknown, pinned on first use"
    return f"""
## {e.name}

- Weights: [{s.file}]({s.url}), {size}, {mark}; {"confirmed by a third party" if s.confirmed else "unconfirmed"}.
- Licence: {e.licence}. Gated: {e.gated}.
- Pretraining: {e.trained_on}. Saw the Spanish cohort: {e.saw_spain}; the African: {e.saw_africa}; ACOUSLIC: {e.saw_acouslic}
  ({e.evidence}).
- Paper: {e.paper}. {e.note}
"""


if __name__ == "__main__":
    (paths.home() / "MODELS.md").write_text(text())
