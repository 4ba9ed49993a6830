"""The report: one page, nothing from elsewhere, readable at every width; what is missing is named."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from typer.testing import CliRunner

from fpbench import cli, load_study
from fpbench.errors import MissingError
from fpbench.reporting import figures, tables
from fpbench.reporting.page import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "<script>alert('a & b')</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page without scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.words, self.inside = text, [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def study(tmp_path):
    """A demo study with one table, one figure, findings and a notebook; nothing else was run."""
    plan = load_study("demo")
    scores = pd.DataFrame(
        {"encoder": ["usfm-mini", NASTY, "mofo-mini"], "macro F1": [0.3, 0.2, 0.1], "n": [9, 10, 100]}
    )
    tables.save(scores, plan, "table1", "Macro F1 of <three> encoders")
    for name in ("06_scores", "04_strength_usfm-mini", "01_gallery_phantom-spain"):
        figure, ax = plt.subplots(figsize=(3, 2))
        ax.imshow(np.arange(12).reshape(3, 4))
        figures.save(figure, plan, name)
        plt.close(figure)
    tables.tell(["usfm-mini is better than nothing."], plan, "06_benchmark", "Which encoder is best")
    (plan.folder / "notebooks").mkdir()
    (plan.folder / "notebooks" / "04_linear_probing.usfm-mini.ipynb").write_text("{}")
    return plan


def test_the_page_holds_what_was_made_and_names_what_was_not(study):
    path = build(study)
    assert path == study.folder / "report.html"
    page = Page(path.read_text())
    assert f"Mind: {study.label}." in page.text
    assert "Macro F1 of <three> encoders" in page.text
    assert NASTY in page.text  # as text, not as a script
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "usfm-mini is better than nothing." in page.text
    assert "Table gap_steps was not made in this run." in page.text
    assert "What adaptation is worth" not in page.text  # this study has no adapted encoder
    assert "Not run: linear probing, ridge probe" in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3
    assert all(one["src"].startswith("data:image/png;base64,") and one["alt"] and int(one["width"]) for one in pictures)
    assert ("a", {"href": "notebooks/04_linear_probing.usfm-mini.ipynb"}) in page.tags
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a" and attributes["href"][0] == "#"}
    assert targets <= {attributes.get("id") for _, attributes in page.tags}


def test_what_is_the_same_in_every_row_is_said_once(study):
    frame = pd.DataFrame({"encoder": ["a", "b"], "metric": "macro F1", "value": [0.1, 0.2], "reason": ["", ""]})
    tables.save(frame, study, "per_class", "F1 of every class")
    page = Page(build(study).read_text())
    assert "In every row: metric macro F1." in page.text
    (table,) = page.source.split('data-name="per_class"')[1:]
    head = re.findall(r'<button type="button">([^<]*)', table.split("</thead>")[0])
    assert head == ["encoder", "value"]
    (table,) = page.source.split('data-name="table1"')[1:]  # Table 1 keeps its columns
    assert len(re.findall("<button", table.split("</thead>")[0])) == 3


def test_no_request_leaves_the_page(study):
    text = build(study).read_text()
    page = Page(text)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|url\(|@import", text)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_methods_are_the_studys_own(study):
    text = Page(build(study).read_text()).text
    assert "are cut into 5 folds, each of which validates once" in text
    assert f"at most {study.recipe.epochs} epochs" in text
    assert "45 strengths C from 1e-06 to 1e+01" in text
    assert "drawn with replacement 10,000 times" in text
    assert "All patients are cut" in Page(build(load_study("sample"), study.folder / "x.html").read_text()).text


def test_methods_and_sections_follow_the_task_and_what_was_made(study):
    assert "rate and epoch are chosen by macro F1" in Page(build(study).read_text()).text
    plan = load_study("demo-quality")
    (plan.folder / "tables").mkdir(parents=True)
    text = Page(build(plan).read_text()).text
    assert "rate and epoch are chosen by AUPRC" in text
    for told in ("LoRA, MLP alone: fetalclip-mini", "segmentation, mask area: fetalclip-mini", "(segmentation: 0.01)"):
        assert told in text
    assert "Every epoch shows the classes equally often." in text
    assert "Which frames of a blind sweep are usable?" not in text
    tables.save(pd.DataFrame({"cases": [3]}), plan, "sweep_counts", "What is scored")
    assert "Which frames of a blind sweep are usable?" in Page(build(plan).read_text()).text
    text = Page(build(replace(plan, split="published", folds=1)).read_text()).text
    assert "a patient with several cases may lie on both sides" in text
    assert "All patients are cut" not in text


@pytest.fixture(autouse=True)
def _sample_tables(study):
    (load_study("sample").folder / "tables").mkdir(parents=True, exist_ok=True)


def test_two_builds_are_the_same_page(study, tmp_path):
    assert build(study).read_bytes() == build(study, tmp_path / "again.html").read_bytes()


def test_without_a_run_there_is_an_error_that_says_what_to_do(study):
    shutil.rmtree(study.folder / "tables")
    with pytest.raises(MissingError, match="run `fpbench run demo` first"):
        build(study)
    assert not (study.folder / "report.html").exists()
    done = CliRunner().invoke(cli.app, ["report", "demo"])
    assert done.exit_code != 0


def browse(path, script, tmp_path, *options):
    """The page's DOM after a script ran, and what the console said."""
    copy = tmp_path / "copy.html"
    copy.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/profile",
        "--enable-logging=stderr", *options, "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("FPBENCH_REQUIRE_BROWSER"),
    reason="needs Chromium: apt-get install chromium",
)
@pytest.mark.parametrize(
    "options", [["--window-size=1280,900"], ["--window-size=390,800"], ["--blink-settings=preferredColorScheme=0"]]
)
def test_a_browser_shows_it_sorts_it_and_asks_nobody(study, tmp_path, options):
    script = (
        "const head = document.querySelectorAll('table[data-name=table1] th button')[2];"
        "const wide = document.documentElement.scrollWidth - innerWidth; head.click(); head.click();"
        "const asked = performance.getEntriesByType('resource').map(one => one.name).filter(one => !one.startsWith('data:'));"
        "document.title = JSON.stringify([wide, getComputedStyle(document.body).backgroundColor, asked]);"
    )
    page, console = browse(build(study), script, tmp_path, *options)
    assert not console
    counts = re.findall(r'<td class="n">(\d+)</td>', page.source)
    assert list(map(int, counts)) == [100, 10, 9]  # as numbers, not as text
    sorted_by = [attributes["aria-sort"] for tag, attributes in page.tags if tag == "th"][:3]
    assert sorted_by == ["none", "none", "descending"]
    (title,) = re.findall(r"<title>(.*?)</title>", page.source)
    wide, ground, asked = json.loads(html.unescape(title))
    assert not asked  # of any server
    assert wide <= 0  # nothing sticks out to the side
    dark = "preferredColorScheme" in options[0]
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark


def test_a_figure_is_measured_once_and_drawn_once_for_each_format(tmp_path, monkeypatch):
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(type(renderer)) or draw(self, renderer))
    figure, ax = plt.subplots()
    ax.plot([1, 2], label="a line")
    ax.legend()
    figures.save(figure, plan := load_study("demo"), "a_figure")
    assert len(drawn) == 3
    assert not plt.fignum_exists(figure.number)
    assert {path.suffix for path in (plan.folder / "figures").iterdir()} == {".png", ".pdf"}
