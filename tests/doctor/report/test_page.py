# SPDX-License-Identifier: Apache-2.0
"""The page of a report: whole, on its own, and nothing in it is anybody else's markup."""

import dataclasses
import html
import html.parser
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from evenkeel import Moments
from evenkeel.doctor.evidence import Normalizer, Observed, Phases, Score, Seen
from evenkeel.doctor.report import drawing, examined, page
from evenkeel.doctor.report.layers import layers, measured, to_blame
from evenkeel.errors import InputError, MissingLibraryError

from conftest import NAME

if NAME != "numpy":
    pytest.skip("no framework takes part", allow_module_level=True)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Structure(html.parser.HTMLParser):
    """Which elements a page has, whether each is closed, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.attributes, self.said, self.closed = [], [], [], "", True
        self.feed(text)
        self.close()
        self.closed = self.closed and not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        self.closed = bool(self.open) and self.open.pop() == tag and self.closed

    def handle_data(self, data):
        if "style" not in self.open:
            self.said += data


@pytest.fixture
def written(tmp_path):
    def written(report):
        report.to_html(tmp_path / "page.html")
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return written


@pytest.fixture(scope="session")
def drawn():
    pytest.importorskip("matplotlib")


@pytest.fixture(scope="session")
def whole(sick, drawn):
    """The page of the sick model."""
    return page.page(sick)


def test_all_parts_are_there(whole):
    found = Structure(whole)
    for part in (
        "Moving statistics never left their starting values",
        "3 normalizers: bn3, bn4, bn\\x1b[2J",
        "the model is a subclass",
        "on 64 rows: accuracy 0.25",
        "Suspicious layers, channel by channel",
        "What it looks for",
    ):
        assert part in found.said
    # Accuracy and gap by layer, divergence by depth, mean and variance of three layers.
    assert found.closed and found.found.count("svg") == 2 + 1 + 2 * 3
    assert all(dict(found.attributes).get(name) for name in ("aria-label", "lang", "charset"))


def loads_or_runs(text):
    """What in a page does."""
    found = Structure(text)
    attributes = [(name, value or "") for name, value in found.attributes if not name.startswith("xmlns")]
    return [
        *({"script", "link", "img", "image", "iframe", "object", "embed"} & set(found.found)),
        *(name for name, _ in attributes if name.startswith("on") or name in ("src", "srcset", "action")),
        *(value for name, value in attributes if name in ("href", "xlink:href") and not value.startswith("#")),
        *re.findall(r"https?:|url\((?!#)|@import", " ".join(value for _, value in attributes)),
        *re.findall(r"https?:|url\(|@import", page.STYLE),
    ]


def test_a_page_loads_and_runs_nothing(whole):
    assert loads_or_runs(whole) == []


@pytest.mark.parametrize("text", ["<img src='x'>", "<p onclick='x'>", "<a href='file:x'>", "<p style='a: url(x)'>"])
def test_the_check_itself_can_fail(text):
    assert loads_or_runs(text)


def test_without_escaping_a_name_would_run(sick, monkeypatch):
    monkeypatch.setattr(html, "escape", str)
    assert "script" in loads_or_runs(page.page(dataclasses.replace(sick, observed=None, phases=None)))


def test_no_id_is_twice_something_else(whole):
    """Plots may share the shapes that they define, and nothing else."""
    found = {}
    for identifier, body in re.findall(r'<(?:path|clipPath) id="([^"]*)"(.*?)/>', whole, re.DOTALL):
        found.setdefault(identifier, set()).add(" ".join(body.split()))
    assert found and all(len(bodies) == 1 for bodies in found.values())


def test_plots_take_their_colours_from_the_page(whole):
    colours = set(re.findall(r"(?:fill|stroke): *(#\w+|\w+\([^)]*\)|\w+)", whole.partition("</style>")[2]))
    assert colours == {"none", *drawing.VARIABLES.values()}


def test_the_same_report_is_the_same_page(sick, whole, written):
    assert written(sick) == whole


@pytest.mark.usefixtures("drawn")
def test_of_many_layers_the_worst_are_drawn(written, monkeypatch):
    monkeypatch.setattr("evenkeel.doctor.report.page.PLOTTED", 2)
    rng = np.random.default_rng(0)
    # Each further from its statistics than the one before.
    seen = [
        Seen(Normalizer(f"bn{n}", np.zeros(3), np.ones(3)), Moments(rng.normal(n, 0.1, 3), np.ones(3), 9.0))
        for n in range(7)
    ]
    found = Structure(written(examined("x", "model", [*(item.normalizer for item in seen), Observed(tuple(seen))])))
    assert found.found.count("svg") == 1 + 2 * 2
    assert "The 2 farthest of 7; 5 left out: bn4, bn3, bn2, bn1 and 1 more." in found.said


@pytest.mark.usefixtures("drawn")
def test_what_is_no_statistic_is_drawn_round(written):
    bad = np.array([np.nan, np.inf, -1.0, 0.0, 1e38])
    normalizers = [Normalizer("a", bad, bad), Normalizer("b"), Normalizer("c", np.zeros(5), np.ones(5))]
    seen = tuple(Seen(item, Moments(np.zeros(5), np.ones(5), np.full(5, 4.0))) for item in normalizers)
    nothing = Phases(Score(np.nan), Score(np.inf), {"a": Score(np.nan)}, 4)
    found = Structure(written(examined("x", "model", [*normalizers, Observed(seen), nothing])))
    assert "what is not finite stands at the top" in found.said and "2 of 5 channels drawn" in found.said


@pytest.mark.usefixtures("drawn")
def test_of_many_channels_the_farthest_are_drawn():
    mean = np.zeros(5000)
    mean[17] = 9.0
    seen = Seen(Normalizer("bn", np.zeros(5000), np.ones(5000)), Moments(mean, np.ones(5000), 9.0))
    (layer,) = layers(Observed((seen,)))
    svg = drawing.channels(layer, "mean")
    assert svg.count("<use") < 2 * drawing.POINTS and "400 of 5,000 channels drawn" in svg
    assert len(re.findall(r"<use[^>]*var\(--error\)", svg)) == 1


def test_the_curve_is_of_what_says_most():
    scores = {"a": Score(0.1, 0.5, 2.0), "b": Score(0.2, 0.9, 1.0)}
    phases = Phases(Score(0.0, 0.4, 2.5), Score(0.2, 0.9, 1.0), scores, 9)
    assert measured(phases) == ("accuracy", [("", 0.4), ("a", 0.5), ("b", 0.9)])
    assert measured(dataclasses.replace(phases, inference=Score(0.0, None, 2.5)))[0] == "loss"
    assert measured(dataclasses.replace(phases, inference=Score(0.0)))[0] == "gap"


@pytest.mark.parametrize(
    ("gaps", "blamed"), [([1, 1, 1], None), ([0, 1, 5], "2"), ([5, 0, 1], "1"), ([0, 1, np.nan, 5], "2"), ([1], None)]
)
def test_the_greatest_step_is_to_blame(gaps, blamed):
    scores = {str(place): Score(gap) for place, gap in enumerate(gaps)}
    assert to_blame(Phases(scores.pop("0"), Score(1.0), scores, 4)) == blamed


def test_a_page_without_data_needs_no_matplotlib(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = Structure(written(examined("x", "model", [Normalizer("bn", np.zeros(2), np.ones(2))])))
    assert "svg" not in found.found and "EK101" in found.said


def test_without_matplotlib_it_is_named(sick, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingLibraryError, match=r"matplotlib is not installed.*evenkeel\[train\]"):
        sick.to_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    report = examined("x", "model", [])
    with pytest.raises(InputError, match=r"page\.html is there already"):
        report.to_html(path)
    assert path.read_text() == "mine"
    report.to_html(path, overwrite=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
@pytest.mark.usefixtures("drawn")
def test_a_browser_shows_it(sick, tmp_path):
    sick.to_html(tmp_path / "page.html")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "shot.png"
    process = subprocess.run(
        [BROWSER, *options, "--window-size=900,3000", f"--screenshot={shot}", (tmp_path / "page.html").as_uri()],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        timeout=120,
    )
    assert shot.exists(), process.stderr.decode()
    picture = __import__("matplotlib.image").image.imread(shot)[..., :3]
    # Red of the error, blue of the healthy points, on white: the colours of the page reached the plots.
    for colour in ("#b3261e", "#1b6ca8", "#ffffff"):
        wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        assert (np.abs(picture - wanted).max(-1) < 0.02).sum() > 200
