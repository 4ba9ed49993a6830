"""A pretraining of a study from end to end: corpus, proof, loop, and a weights file with a model card that an encoder is filled from."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fpbench import loading, results
from fpbench.cohorts import count_images, source_of
from fpbench.encoders import Encoder
from fpbench.encoders.catalogue import CATALOGUE
from fpbench.files import artifacts, paths, provenance
from fpbench.recipe import Pretraining
from fpbench.study import Study
from fpbench.training.loop import Pictures
from fpbench.training.pretraining import trainer, views
from fpbench.training.pretraining.corpus import Corpus, gather, listed, place, prove
from fpbench.training.pretraining.network import Pair
from fpbench.training.pretraining.trainer import Part, Pretrainer


@dataclass(frozen=True)
class Result:
    """A finished pretraining."""

    file: Path  # the weights; the card lies beside it, as JSON and as text
    card: dict
    history: pd.DataFrame  # a row per epoch, the first of step 0


def pretrain(study: Study, name: str, corpus: Corpus | None = None) -> Result:
    """Pretrain, or take up a finished or interrupted run, and write weights and card.

    Parameters
    ----------
    name
        Of the study's pretrainings.
    corpus
        Of ``corpus.gather``, which is asked for it by default; the proof that it holds nobody who is tested is made here.

    Raises
    ------
    InputError
        The proof fails; the monitor has too few pictures; the run collapsed or diverged (``monitor.Collapsed``, ``loop.Diverged``).
    """
    corpus = corpus or gather(study, name)
    prove(corpus)
    plan, file = study.pretraining[name], results.pretrained(study, name)
    encoder = loading.load_encoder(study, plan.start)
    key = run_key(plan, encoder, corpus)
    about = artifacts.whole(file)
    if about.get("key") != key:
        about = _trained(study, name, encoder, corpus, file, key)
    return Result(file, about["card"], pd.DataFrame(about["history"]))


def _trained(study: Study, name: str, encoder: Encoder, corpus: Corpus, file: Path, key: str) -> dict:
    """Run the loop, write weights and card, and return the sidecar."""
    plan = study.pretraining[name]
    model = Pair(encoder, plan.objective.prototypes_for(len(corpus.learners)), plan.objective, plan.seed)
    run = Pretrainer(model, part_of(corpus, encoder.device), plan, file.parent / key[:12], key, f"pretraining {name}")
    card = describe(study, name, encoder, corpus, run.run(), run.best_epoch)
    run.keep_best(file, {"best": run.best_epoch, "card": card})
    with artifacts.atomic(file.with_suffix(".md")) as path:
        path.write_text(written(card))
    return artifacts.checked(file)


def part_of(corpus: Corpus, device: torch.device) -> Part:
    """Return what the loop sees of a corpus: the pictures that it uses, and no others."""
    used, seen = np.flatnonzero(corpus.table[["learns", "bank", "query"]].any(axis=1)), corpus.monitor()
    watch = replace(seen, bank=np.searchsorted(used, seen.bank), queries=np.searchsorted(used, seen.queries))
    names = corpus.table["image_id"].to_numpy()[used]
    return Part(Pictures(corpus.stack.only(used), device), names, np.searchsorted(used, corpus.learners), watch)


def run_key(plan: Pretraining, encoder: Encoder, corpus: Corpus) -> str:
    """Return a digest of everything that the weights depend on."""
    recipe = {name: value for name, value in asdict(plan).items() if name not in ("start", "corpus")}
    device = [encoder.device.type, torch.get_num_threads() if encoder.device.type == "cpu" else 0, torch.__version__]
    return artifacts.digest([trainer.VERSION, recipe, encoder.identity(), corpus.digest(), corpus.stack.side, device])


def describe(study: Study, name: str, encoder: Encoder, corpus: Corpus, history: pd.DataFrame, best: int) -> dict:
    """Return the model card: what the weights are, where they come from, what they saw, and under what licence."""
    plan, first = study.pretraining[name], history.iloc[0]
    chosen = history[history["epoch"] == best].iloc[0]
    what = "test pictures in the corpus (transductive): no evidence of a held-out score" if corpus.transductive else ""
    told = f"pretrained here from {plan.start} on {len(corpus.learners):,} pictures of {', '.join(corpus.summary()['cohort'].unique())}"
    return {
        "name": name,
        "note": "; ".join(filter(None, (told, what))),
        "start": {"encoder": plan.start, **encoder.identity(), "source": encoder.weights.source, "file": encoder.weights.location},
        "corpus": corpus.summary().to_dict("records"),
        "left out": corpus.left_out.to_dict("records"),
        "transductive": corpus.transductive,
        "saw": _saw(study, corpus, encoder),
        "recipe": asdict(plan),
        "monitor": {
            "step 0": float(first["k-NN"]), "best epoch": int(best), "k-NN": float(chosen["k-NN"]),
            "beaten": bool(chosen["k-NN"] > first["k-NN"]),
        },
        "licence": _licence(encoder, corpus),
        "label": study.label,
        "provenance": {**provenance.provenance(), "threads": study.threads, "device": str(encoder.device)},
    }  # fmt: skip


def _saw(study: Study, corpus: Corpus, encoder: Encoder) -> dict[str, str]:
    """Return population -> yes, no or unknown, for every population of the study and the corpus: this corpus, and the start before it."""
    found = {source.population: "no" for source in loading.sources(study)} | corpus.saw()
    entry = CATALOGUE.get(encoder.model)
    for population in [one for one, seen in found.items() if seen == "no" and encoder.weights.source != "random"]:
        found[population] = getattr(entry, f"saw_{population}", "unknown")
    return found


def _licence(encoder: Encoder, corpus: Corpus) -> str:
    """Return what follows from the start, and the terms of the pictures."""
    start = "no released weights" if encoder.weights.source == "random" else encoder.weights.licence
    data = {f"{corpus.sources[name].title}: {corpus.sources[name].licence}" for name in corpus.summary()["cohort"]}
    return f"start: {start}; pictures: {'; '.join(sorted(data))}"


def written(card: dict) -> str:
    """Return the card as a page."""
    rows = pd.DataFrame(card["corpus"]).to_markdown(index=False)
    out = pd.DataFrame(card["left out"]).to_markdown(index=False) if card["left out"] else "nothing"
    seen = "\n".join(f"- {population}: {what}" for population, what in card["saw"].items())
    mind = f" {card['label']}." if card["label"] else ""
    return (
        f"# {card['name']}\n\n{card['note']}.{mind}\n\nLicence: {card['licence']}.\n\n"
        f"## Start\n\n{card['start']['model']} ({card['start']['file']}), tensors {card['start']['weights'][:16]}\n\n"
        f"## Corpus\n\n{rows}\n\nLeft out:\n\n{out}\n\nSeen by these weights:\n\n{seen}\n\n## Monitor\n\n{told(card)}\n\n"
        f"## Recipe\n\n```json\n{_json(card['recipe'])}\n```\n\nMade by fpbench {card['provenance']['fpbench']}.\n"
    )


def _json(content: Any) -> str:
    import json

    return json.dumps(content, indent=1)


def told(card: dict) -> str:
    """Return a sentence: was step 0, the network before its first step, beaten?"""
    seen = card["monitor"]
    numbers = f"k-NN {seen['k-NN']:.3f} in epoch {seen['best epoch']}, {seen['step 0']:.3f} before the first step"
    if seen["beaten"]:
        return f"Better than where it started, by the monitor: {numbers}."
    return f"Step 0 was never beaten: by the monitor, this pretraining gained nothing ({numbers}); the best later epoch is kept."


def conclude(study: Study, result: Result) -> None:
    """Write ``pretraining/<name>.json``, the list of files with their SHA-256: the job is done."""
    files = [result.file, artifacts.sidecar(result.file), result.file.with_suffix(".md")]
    done = {str(file.relative_to(study.folder)): artifacts.file_sha256(file) for file in files}
    artifacts.write_json(study.folder / "pretraining" / f"{result.card['name']}.json", {"files": done})


def sixteen(study: Study, name: str, corpus: Corpus, cohort: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return two pictures' worth of views, of one picture: global ones (n, S, S) and local ones (m, s, s), sixteen together.

    The picture is the first of a cohort (default: of the corpus) that is learnt from.
    """
    plan, table = study.pretraining[name], corpus.table
    rows = np.flatnonzero(
        table["learns"] & (table["cohort"] == (cohort or table.loc[table["learns"], "cohort"].iat[0]))
    )
    settings = replace(plan.views, locals=6)
    picture = torch.from_numpy(corpus.stack[rows[[0, 0]]])
    wide, local = views.Maker(settings, torch.device("cpu"))(picture, views.draw(settings, 2, plan.seed))
    return wide[:, 0].numpy(), local[:, 0].numpy()


def estimate(study: Study, name: str, pictures: int) -> dict[str, float]:
    """Return what a pretraining on so many pictures would take here: steps, hours, from one step timed on few pictures.

    The encoder has random weights; pictures that the rules would leave out are counted.
    """
    import time

    plan = study.pretraining[name]
    spec = replace(study.encoder_spec(plan.start), weights="random", ignore=[])
    encoder = loading.load_encoder(replace(study, encoders=[spec], tuned={}, pretraining={}), plan.start)
    count = plan.objective.batch if encoder.device.type == "cuda" else min(8, plan.objective.batch)
    small = replace(plan, epochs=1, objective=replace(plan.objective, batch=count, targets="centring"))
    model = Pair(encoder, plan.objective.prototypes_for(pictures), small.objective, 0)
    side = plan.views.cache
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side)).astype(np.uint8)
    rows = np.arange(count)
    run = Pretrainer(
        model, Part(Pictures(noise, encoder.device), rows.astype(str), rows), small, Path(), "", "estimate"
    )
    model.train()
    for _ in range(2):
        began = time.perf_counter()
        run.step(torch.from_numpy(noise).to(encoder.device), trainer.Batch(rows)).tolist()
        seconds = (time.perf_counter() - began) / count
    return {"steps": plan.epochs * (pictures // plan.objective.batch), "hours": seconds * plan.epochs * pictures / 3600}


def most(study: Study, name: str) -> int:
    """Return how many pictures a corpus can have at most: those that are declared."""
    found = 0
    for spec in study.pretraining[name].corpus:
        if spec.folder:
            found += len(listed(paths.expand(spec.folder)))
        else:
            found += count_images(source_of(place(study, spec)[0]))
    return found
