import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest

from pipeline.aggregation import insight, report, samples, style
from pipeline.aggregation.compare import compare
from pipeline.aggregation.curves import read_curves
from pipeline.aggregation.figures import draw
from pipeline.aggregation.layers import read_layers
from pipeline.aggregation.origins import origins
from pipeline.aggregation.rows import collect
from pipeline.aggregation.sweep import load
from tests.aggregation.made_up import STATES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def sweep(demo):
    return load(demo)


@pytest.fixture(scope="module")
def comparison(sweep):
    return compare(sweep, collect(sweep))


@pytest.fixture(scope="module")
def figures(sweep, comparison):
    return draw(comparison, read_curves(sweep), read_layers(sweep)) | insight.draw(comparison, insight.read(sweep))


@pytest.fixture(scope="module")
def page(sweep, comparison, figures):
    return report.render(sweep, comparison, figures)


def test_figures_are_the_same_bytes_again_whatever_a_users_matplotlibrc_says(sweep, comparison, figures, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "xtick.major.size", 30)
    monkeypatch.setitem(mpl.rcParams, "axes.linewidth", 9)
    again = draw(comparison, read_curves(sweep), read_layers(sweep)) | insight.draw(comparison, insight.read(sweep))
    assert again == figures


def test_figures_hold_their_data(figures):
    text = {name: drawn.decode() for name, drawn in figures.items()}
    assert set(text) == {f"{name}.svg" for name in report.CAPTIONS | insight.CAPTIONS}
    for drawn in text.values():
        assert "<dc:date>" not in drawn
        assert "matplotlib" not in drawn.lower().replace("matplotlib.axis", "")
    for method in ("LoRA", "DyLoRA", "OFTv2", "AdaLoRA"):
        assert f">{method}<" in text["score-vs-parameters.svg"]
    assert ">DyLoRA, one run, all ranks<" in text["rank-curve.svg"]
    assert ">LoRA, a run for each rank<" in text["rank-curve.svg"]
    assert "OFTv2" not in text["rank-curve.svg"]
    assert text["states.svg"].count("rank 4 of 8") == 2
    assert ">block size 16, nf4-double<" in text["training-curves.svg"]
    assert ">block size 16, nf4-double, failed<" in text["training-curves.svg"]
    assert "10^" not in text["training-curves.svg"]


def test_a_figure_without_data_says_why(comparison):
    alone = comparison.model_copy(update={"lines": tuple(line for line in comparison.lines if line.is_base)})
    drawn = {name: data.decode() for name, data in draw(alone, {}, []).items()}
    assert "No run has been scored yet." in drawn["score-vs-parameters.svg"]
    assert "No run has left a training curve." in drawn["training-curves.svg"]
    assert "several ranks at once" in drawn["rank-curve.svg"]
    assert "No base of this sweep is quantized." in drawn["layers.svg"]


def test_every_color_follows_the_theme(figures):
    for name, drawn in figures.items():
        left = set(re.findall(r"#[0-9a-f]{6}", style.inline(drawn, name))) - {"#000000"}
        assert not left, f"{name}: {left} would stay as it is in the dark"
    css = report.CSS.read_text()
    for variable in style.VARIABLES.values():
        assert css.count(f"{variable}: ") == 2, f"{variable} needs a light and a dark value"


def test_the_page_stands_alone(page):
    assert not re.findall(r"""(?:src|href|xlink:href)=["'](?!#|data:)[^"']*""", page)
    assert not re.findall(r"url\((?!#)|@import|fetch\(", page)


class Tags(HTMLParser):
    """Checks that tags are closed in the order in which they were opened, and collects ids."""

    VOID = ("meta", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)


def test_what_users_write_is_escaped(page):
    assert "&amp; gets 0 + 2 &lt;more&gt;" in page
    assert "<more>" not in page


def test_samples_are_the_same_items_in_every_state(sweep, comparison):
    found = samples.choose(sweep, comparison)
    assert len(found.samples) == 6
    assert found.unread == []
    assert len({sample.item for sample in found.samples}) == 6
    for sample in found.samples:
        assert [name.split(",")[0] for name in sample.replies] == ["LoRA", "DyLoRA", "OFTv2", "AdaLoRA"]
        assert all(set(replies) == {"base", *STATES} for replies in sample.replies.values())
        number = int(sample.item.rsplit("-", 1)[1])
        assert sample.fields["question"].startswith(f"Tom has {number} apples")
        for replies in sample.replies.values():
            for reply in replies.values():
                assert (reply.score == 100) == reply.text.endswith(f"#### {number + 2}")
    won = found.samples[0].replies.values()
    assert all(replies["base"].score < replies["trained"].score for replies in won)


def test_replies_that_are_not_the_scored_ones_are_not_shown(small):
    for file in (small.parents[2] / "runs").glob("*/evaluate/gsm8k-demo-*.jsonl"):
        file.write_text(file.read_text().replace("eos", "soe"))
    sweep = load(small)
    found = samples.choose(sweep, compare(sweep, collect(sweep)))
    assert found.samples == []
    assert len(found.unread) == 2
    assert all("damaged" in said and str(sweep.results) not in said for said in found.unread)


def test_provenance_names_protocols_data_settings_and_makers(sweep):
    tables = origins(sweep).tables
    assert ["max_new_tokens", "48", "48", "48", "48"] in tables["Protocols"]
    assert "gsm8k-demo generated Apache-2.0 test 150" in [" ".join(row[:4]) for row in tables["Data"]]
    assert ["commit", "c0ffee123456 (28)"] in tables["Made by"]
    assert ["torch", "2.13.0 (28)"] in tables["Made by"]
    assert ["training.learning_rate", "0.002"] in tables["Settings that all runs share"]
    assert "seed" in tables["Settings that differ, by run"][0]
    assert len(tables["Runs"]) == 1 + 28
    assert len(tables["Bases"]) == 1 + 2


PROBE = """
<script>
window.addEventListener("load", () => {
  const figures = [...document.querySelectorAll("figure")].map((figure) => {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll("path, use")].filter((one) => one.getBoundingClientRect().width > 0);
    return { id: figure.id, width: box.width, height: box.height, marks: marks.length };
  });
  const rows = () => [...document.querySelectorAll("#table-main tbody:not(.bases) tr")];
  const order = () => rows().map((row) => row.innerText);
  const before = order();
  const head = [...document.querySelectorAll("#table-main th")][4];
  head.querySelector("button").click();
  const background = () => getComputedStyle(document.body).backgroundColor;
  const themes = [background()];
  document.getElementById("theme").click();
  themes.push(background());
  const values = rows().map((row) => row.cells[4].dataset.value);
  const moved = order().join() !== before.join();
  const said = { figures, sorted: head.getAttribute("aria-sort"), values, moved, themes,
    loaded: performance.getEntriesByType("resource").map((one) => one.name),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth };
  document.body.innerHTML = "<pre id=said></pre>";
  document.getElementById("said").textContent = JSON.stringify(said);
});
</script>
"""


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory):
    """Return what a browser saw of the page, and what it said on its console."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    file.write_text(page.replace("</body>", PROBE + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --window-size=1400,2400 --enable-logging=stderr --v=0"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    unescaped = match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(unescaped), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_finds_no_error_and_loads_nothing(seen):
    said, console = seen
    assert console == []
    assert said["loaded"] == []
    assert said["wide"] <= 0, "the page scrolls sideways"


def test_a_browser_draws_every_figure(seen):
    figures = {figure["id"]: figure for figure in seen[0]["figures"]}
    assert set(figures) == {f"figure-{name}" for name in report.CAPTIONS | insight.CAPTIONS}
    for figure in figures.values():
        assert figure["width"] > 300
        assert figure["height"] > 200
        assert figure["marks"] > 20


def test_a_browser_sorts_and_changes_the_theme(seen):
    said = seen[0]
    assert said["sorted"] == "descending"
    assert said["moved"]
    numbers = [float(value) for value in said["values"] if value]
    assert numbers == sorted(numbers, reverse=True)
    assert said["values"][-1] == "", "lines without a number stand last"
    assert said["themes"][0] != said["themes"][1]


def test_captions_of_the_workflows_own_report_are_there():
    folder = Path(__file__).parents[2] / "docs/report"
    assert {path.stem for path in folder.glob("*.rst")} == {"workflow", "table", "figures", "report"}
