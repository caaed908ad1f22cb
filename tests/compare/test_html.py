"""The page: one file, all of the table and the plots, and nothing from outside."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lmxexp.compare import html
from lmxexp.compare.cells import cells, headings
from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.flips import flips
from lmxexp.compare.tuned_words import lines
from lmxexp.compare.words import sentences
from tests.compare.made_runs import memory_run


class Page(HTMLParser):
    """The tags, attributes, texts and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts, self.rows = [], [], [], []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        else:
            self.texts.append(data)
            if self.inside in ("td", "th"):
                self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def pages(swept, tuned):
    return {name: html.page(c) for name, c in (("swept", swept), ("tuned", tuned))}


LOADS = {"src", "href", "srcset", "data", "action", "formaction", "poster", "background", "manifest", "ping"}


@pytest.mark.parametrize("name", ["swept", "tuned"])
def test_nothing_comes_from_outside(pages, name):
    page = Page(pages[name])
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base", "form", "audio", "video"), tag
        assert not LOADS & set(attributes), (tag, attributes)
        assert "@import" not in attributes.get("style", "")
        assert "url(" not in attributes.get("style", "")
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert not any("http" in rule or "*" in rule or "//" in rule for rule in rules.values())
    style = re.search(r"<style>(.*?)</style>", pages[name], re.DOTALL)[1]
    assert "@import" not in style
    assert "url(" not in style
    ours = pages[name].replace(page.scripts[0], "")  # plotly.js alone speaks of addresses, which the policy bars
    assert not re.search(r"https?://|//[a-z]+\.", ours)


def test_the_policy_stands_before_anything_that_could_load(pages):
    for text in pages.values():
        assert text.index("Content-Security-Policy") < min(
            text.index("<style"), text.index("<script"), text.index("<body")
        )


@pytest.mark.parametrize("name", ["swept", "tuned"])
def test_it_has_the_table_and_all_that_is_said(pages, name, request):
    comparison = request.getfixturevalue(name)
    page = Page(pages[name])
    assert page.rows[0] == headings(comparison)
    assert page.rows[1 : 1 + len(comparison.rows)] == cells(comparison)
    items = "\n".join(page.texts)
    for text in (*sentences(comparison), *comparison.warnings, *flips(comparison)):
        assert text in items
    for run in comparison.failed:
        assert f"{run.name}: diverged: {run.error}" in items
    if comparison.tuning:
        assert all(text in items for text in lines(comparison.tuning))
    assert "1 run does not count" in items


def data_of(page):
    """What the script holds: the curves and the other plots."""
    script = page.scripts[-1]
    curves, plots = re.match(r"const CURVES = (.*?);\nconst PLOTS = (.*?);\nconst options", script, re.DOTALL).groups()
    return json.loads(curves), json.loads(plots)


@pytest.mark.parametrize(
    ("name", "plots"),
    [("swept", ["differences", "forest", "pareto"]), ("tuned", ["differences", "forest", "pareto", "tuning"])],
)
def test_every_plot_has_its_place(pages, name, plots):
    page = Page(pages[name])
    curves, others = data_of(page)
    assert list(curves) == ["step", "tokens", "flops", "seconds"]
    assert list(others) == plots
    places = [a["id"] for tag, a in page.tags if tag == "div" and "id" in a]
    assert places == ["curves", *plots]
    assert [a["value"] for tag, a in page.tags if tag == "option"] == list(curves)
    assert len(page.scripts[0]) > 1_000_000  # plotly.js itself
    assert "plotly.js v" in page.scripts[0][:200]


def test_the_configurations_against_the_baselines(pages):
    page = Page(pages["swept"])
    rows = [row for row in page.rows if row and row[0] == "attention"]
    assert [row[1:] for row in rows] == [["mha", "gqa"], ["mha", "mqa"], ["mha", "sliding"]]
    summaries = [text for text in page.texts if "settings differ from attention=mha" in text]
    assert len(summaries) == 3


def test_users_words_are_no_markup():
    name = "</script><script>alert(1)</script>\"'&"
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s / 10) for k in (name, "mha") for s in (1, 2)]
    runs.append(memory_run({"attention": "mha"}, seed=3, status="failed", error="<img src=x onerror=alert(1)>"))
    text = html.page(compare_runs(runs))
    page = Page(text)
    assert len(page.scripts) == 2
    assert not any(tag == "img" for tag, _ in page.tags)
    assert text.count("<script") == text.count("</script>") == 2
    assert f"attention={name}" in [row[0] for row in page.rows]


def test_many_verdicts_are_folded(pages):
    runs = [
        memory_run({}, {"optim.learning_rate": (i + 1) / 1000}, seed=s, loss=3 + s / 10)
        for i in range(14)
        for s in (1, 2)
    ]
    many = Page(html.page(compare_runs(runs)))
    assert "verdicts on 13 arms, in words" in many.texts
    assert not any("in words" in text for text in Page(pages["swept"]).texts)


def test_no_text_ends_the_script():
    text = html._json({"<": "</script><!--"})
    assert "<" not in text
    assert json.loads(text) == {"<": "</script><!--"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        html._json([float("nan")])


def test_a_comparison_of_ends_alone_has_no_curves(tmp_path):
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s / 10) for k in ("gqa", "mha") for s in (1, 2)]
    path = html.write(compare_runs(runs), tmp_path / "new" / "folder")
    page = Page(path.read_text())
    assert data_of(page)[0] == {}
    assert not any(a.get("id") in ("curves", "x") for _, a in page.tags)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

CHOOSE = """
for (const [id, key, value] of [['x', 'value', 'flops'], ['log', 'checked', true], ['ylog', 'checked', true]]) {
  document.getElementById(id)[key] = value;
  document.getElementById(id).dispatchEvent(new Event('change'));
}
const shown = document.getElementById('curves').layout;
document.title = [shown.xaxis.title.text, shown.xaxis.type, shown.yaxis.type].join(' ');
"""
"""What a user does: the curves against FLOPs, both axes logarithmic."""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser is here")
@pytest.mark.parametrize("name", ["swept", "tuned"])
def test_a_browser_draws_it_without_a_network(pages, name, tmp_path):
    """Every name is unresolvable. What the script throws, or is refused, would be in the console."""
    (tmp_path / "page.html").write_text(pages[name].replace("</body>", f"<script>{CHOOSE}</script></body>"))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=10000",
        "--window-size=1200,4000", "--dump-dom", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    drawn = re.findall(r'<div id="(\w+)" class="js-plotly-plot"', done.stdout)
    assert drawn == ["curves", *data_of(Page(pages[name]))[1]]
    assert done.stdout.count('<svg class="main-svg"') >= len(drawn)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "<title>training FLOPs log log</title>" in done.stdout
