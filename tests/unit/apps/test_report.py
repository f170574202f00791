"""The page: complete in itself, safe with any name, honest in its words."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from anomalens.apps import report
from anomalens.apps.report import chance, choose, expand, headline, heat_png, heat_range, histogram, render
from anomalens.apps.run_folder import shrink

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>&amp;{{ 7*7 }}</script>.png"
VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """Collects elements with their attributes, the text of scripts, and checks that elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.stack: list[str] = []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack:
            self.texts.setdefault(self.stack[-1], []).append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and kind in (a.get("class") or "")]


def row(id: str, score: float | None, verdict: str = "pass", **more) -> dict:
    return {"id": id, "score": score, "p_value": None, "verdict": verdict, "error": "", **more}


def detailed(id: str, score: float, verdict: str, **more) -> dict:
    values = np.zeros((40, 60), np.float32)
    values[10:12, 30:33] = score
    region = {"box": [30, 10, 33, 12], "area": 6, "peak": score, "outline": [[30, 10], [33, 10], [33, 12], [30, 12]]}
    boxed = {"box": [1, 2, 4, 8], "area": 18, "peak": score / 2, "outline": []}
    return row(
        id, score, verdict, size=[60, 40], heat=shrink(values), label=1, p_value=0.02, regions=[region, boxed],
        reasons=[{"text": "a screw is missing & <b>", "rule": "", "box": None}], **more,
    )  # fmt: skip


def grey(id: str) -> np.ndarray:
    return np.full((40, 60, 3), 90, np.uint8)


SUMMARY = {
    "sentences": ["At most 1 in 39 good pictures is expected to be rejected."],
    "method": "PatchCore",
    "good_scores": [0.5, 1.0, 1.5],
    "reject": 2.0,
    "review": 1.4,
    "pixel_threshold": 1.0,
    "command": "anomalens inspect 'new <parts>'",
    "map_scale": 2.0,
    "differs": "No random projection.",
}


@pytest.fixture
def rows():
    return [
        detailed("good/0.png", 0.9, "pass"),
        detailed(HOSTILE, 9.0, "reject"),
        detailed("crack/1.png", 1.8, "review"),
        row("broken.png", None, "review", error="broken.png is <damaged>."),
    ]


def test_the_page_asks_the_network_for_nothing(rows):
    page = Page(render(SUMMARY, [r for r in rows if r["id"] != HOSTILE], grey))
    text = render(SUMMARY, [r for r in rows if r["id"] != HOSTILE], grey)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|src=", text)
    assert not page.all("link")
    for tag, attributes in page.found:
        target = attributes.get("href") or "#"
        if tag == "image":
            assert target.startswith("data:image/")
        else:
            assert target.startswith("#") or target in ("results.csv", "results.jsonl", "run.json", "maps/")


def test_the_policy_allows_our_script_alone(rows):
    page = Page(render(SUMMARY, rows, grey))
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = page.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_hostile_names_stay_text(rows):
    page = Page(render(SUMMARY, rows, grey))
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not page.all("b", "evil")
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    assert HOSTILE in [a["data-id"] for a in page.all("article")]
    assert "".join(page.texts["pre"]) == SUMMARY["command"]
    assert "a screw is missing & <b>" in page.texts["p"]
    assert "broken.png is <damaged>." in page.texts["td"]


def test_cards_come_highest_score_first_with_picture_heat_and_outlines(rows):
    page = Page(render(SUMMARY, rows, grey))
    assert [a["data-verdict"] for a in page.all("article")] == ["reject", "review", "pass"]
    images = page.all("image")
    assert [a["href"][:16] for a in images] == ["data:image/jpeg;", "data:image/png;b"] * 3
    with Image.open(io.BytesIO(base64.b64decode(images[0]["href"].split(",")[1]))) as picture:
        assert picture.size == (60, 40)
    assert [a["points"].split() for a in page.all("polygon")] == [["30,10", "33,10", "33,12", "30,12"]] * 3
    assert page.all("rect")[-1]["width"] == "3"  # a region without an outline is drawn as its box
    assert all(a["aria-label"] for a in page.all("svg") if a.get("role") == "img")


def test_thumbnails_are_small(rows):
    large = np.random.default_rng(0).integers(0, 255, (900, 1500, 3), np.uint8)
    page = Page(render({}, [row("a.png", 1.0)], lambda id: large))
    with Image.open(io.BytesIO(base64.b64decode(page.all("image")[0]["href"].split(",")[1]))) as picture:
        assert picture.size == (480, 288)


def test_a_missing_picture_is_said(rows):
    page = Page(render(SUMMARY, rows, lambda id: None))
    assert len(page.all("image")) == 3  # the heat maps
    assert page.texts["text"].count("the picture is not there any more") == 3


SEEN = {"text": "Seen under light_2 71 %", "rule": "lights", "shares": {"light_0": 0.2895, "light_2": 0.7105}}
WEIGHTS = {"text": "Weights light_0 50 %", "rule": "attention", "shares": {"light_0": 0.5, "light_2": 0.5}}


@pytest.mark.parametrize("marked", [False, True])
def test_the_views_that_showed_it_are_bars_and_named_in_words(marked):
    told = {**detailed("a/0.png", 9.0, "reject"), "view": "light_2", "reasons": [SEEN, WEIGHTS][: 1 + marked]}
    page = Page(render(SUMMARY, [told, detailed("b.png", 1.0, "pass")], grey))
    assert len(page.all("figure", "views")) == 1
    bars = [a["style"] for tag, a in page.found if tag == "i" and a.get("style", "").startswith("--share")]
    mark = "; --mark: 0.5000" if marked else ""
    assert bars == [f"--share: 0.2895{mark}", f"--share: 0.7105{mark}"]
    assert [t.replace("\xa0", " ") for t in page.texts["b"] if "%" in t.replace("\xa0", " ")] == ["29 %", "71 %"]
    assert len(page.all("li", "most")) == 1
    words = [t for texts in page.texts.values() for t in texts if "Seen under" in t]
    assert words == ["Seen under light_2 71 %. "]  # for those who hear the page; not a second time in sight
    assert page.texts["span"].count("light_2") == 2  # on the picture and beside the bar
    assert any("Picture a/0.png under light_2, reject" in (a.get("aria-label") or "") for a in page.all("svg"))


def test_a_sample_of_one_view_has_no_bars(rows):
    page = Page(render(SUMMARY, rows, grey))
    assert not page.all("figure")
    assert not page.all("span", "viewed")


def test_the_limit_keeps_rejects_first_and_names_the_rest():
    many = [row(f"pass{k}.png", k, "pass") for k in range(30)] + [
        row(f"bad{k}.png", 5.5 + k, "reject") for k in range(3)
    ]
    assert [r["id"] for r in choose(many, 5)] == ["pass29.png", "pass28.png", "bad2.png", "bad1.png", "bad0.png"]
    read = []
    page = Page(render({}, many, lambda id: read.append(id), limit=5))
    assert len(page.all("article")) == 5
    assert sorted(read) == ["bad0.png", "bad1.png", "bad2.png", "pass28.png", "pass29.png"]
    named = [text for text in page.texts["td"] if text.endswith(".png")]
    assert named == [f"pass{k}.png" for k in range(27, -1, -1)]
    assert (
        "The page shows 5 of 33 pictures, rejects and the highest scores first. The other 28 are named here."
        in page.texts["p"]
    )


def test_a_page_without_calibration_promises_nothing():
    page = Page(render({"review": 3.0}, [row("a.png", 5.0, "review"), row("b.png", 1.0)], grey))
    assert page.texts["h1"] == ["1 of 2 pictures stands out from the others; nothing is promised"]
    assert any("no threshold with a known false-alarm rate" in text for text in page.texts["p"])


@pytest.mark.parametrize(
    "rows", [[], [row("a.png", None, "review", error="damaged")], [row("a.png", 0.0)], [row("a.png", -3.0)] * 2]
)
def test_a_page_opens_with_very_little(rows):
    assert Page(render({}, rows, lambda id: None)).texts["h1"]


def test_headlines():
    def say(calibrated=True, **counts):
        return headline(Counter({"pass": 0, "review": 0, "reject": 0, **counts}), calibrated)

    assert say(reject=8, **{"pass": 14}) == "8 of 22 pictures do not belong"
    assert say(reject=1, review=1, **{"pass": 1498}) == "1 of 1,500 pictures does not belong, 1 needs a second look"
    assert say(review=2, **{"pass": 3}) == "2 of 5 pictures need a second look, the others belong"
    assert say(**{"pass": 5}) == "All 5 pictures belong"
    assert say(**{"pass": 1}) == "The one picture belongs"
    assert say() == "No picture could be judged"
    assert say(False, **{"pass": 4}) == "None of 4 pictures stands out from the others"
    assert say(False, review=2, **{"pass": 4}) == "2 of 6 pictures stand out from the others"


def test_chances_in_words():
    good = [1.0, 2.0, 3.0]
    assert (
        chance(row("a", 4.0) | {"p_value": 1 / 4}, good)
        == "above all 3 good pictures (at most 1 in 4 scores this high)"
    )
    assert chance(row("a", 2.5) | {"p_value": 1 / 417}, good) == "about 1 in 420 good pictures scores this high"
    assert chance(row("a", 2.5) | {"p_value": 0.3}, good) == "about 3 in 10 good pictures score this high"
    assert chance(row("a", 2.5) | {"p_value": 1.0}, good) == "nearly every good picture scores this high"
    assert chance(row("a", 2.5), good) == ""


def test_heat_is_clear_below_and_strong_above_the_threshold():
    values = np.array([[0.0, 0.6, 1.0, 3.0]], np.float32)
    heat = shrink(values)
    assert heat_range([], {"pixel_threshold": 1.0}) == (0.0, 2.0)
    with Image.open(io.BytesIO(heat_png(heat, (0.0, 2.0)))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert pixels.shape == (1, 4, 4)
    alpha = pixels[0, :, 3].astype(int)
    assert alpha[0] == alpha[1] == 0
    assert 90 < alpha[2] < 130
    assert tuple(pixels[0, 3]) == report.HEAT[-1][1:]
    assert np.abs(expand(heat) - values).max() <= 3 / 255


def test_heat_without_a_threshold_leaves_ordinary_pictures_clear():
    heats = [{"heat": shrink(np.array([[0.0, peak]]))} for peak in [1.0] * 50 + [10.0]]
    low, high = heat_range(heats, {})
    assert low == 0
    assert 2 <= high <= 10


def test_the_histogram_counts_every_picture_once():
    rng = np.random.default_rng(0)
    few = [
        row(f"{k}", s, v)
        for k, (s, v) in enumerate(zip(rng.normal(size=30), ["pass", "review", "reject"] * 10, strict=True))
    ]
    page = Page(str(histogram(few, {"reject": 1.0}, {"0": "#open=0"}, 1080, 264)))
    assert (len(page.all("circle")), len(page.all("path")), len(page.all("rect"))) == (10, 10, 10)
    assert [a["href"] for a in page.all("a")] == ["#open=0"]
    many = [row(f"{k}", float(s)) for k, s in enumerate(rng.normal(size=5000))]
    page = Page(str(histogram(many, {"good_scores": list(rng.normal(size=77))}, {}, 1080, 264)))
    words = [re.match(r"(\d+) (pass|good)", text).groups() for text in page.texts["title"]]
    assert sum(int(n) for n, kind in words if kind == "pass") == 5000
    assert sum(int(n) for n, kind in words if kind == "good") == 77


@pytest.mark.parametrize(
    "scores",
    [[0.0], [1.0, 1.0], [-5.0, 900.0], [1e-9, 1e-3, 5.0], [1e-200, 1e200], [0.51, 0.52], [3.0, 100.0], [1e20, 1e20]],
)
def test_the_histogram_stays_inside_its_drawing(scores):
    for width in (380, 1080):
        text = str(histogram([row(f"{k}", s) for k, s in enumerate(scores)], {"reject": scores[0]}, {}, width, 250))
        assert "nan" not in text
        assert "inf" not in text
        page = Page(text)
        assert len(page.all("circle")) == len(scores)
        places = [float(a[key]) for tag, a in page.found for key in ("x", "cx", "x1") if key in a]
        assert all(-1 <= place <= width + 1 for place in places)
        assert 2 <= len(page.all("line", "tick")) <= 90
        assert ("logarithmic" in text) == (min(scores) > 0 and max(scores) / min(scores) >= 30)


def test_an_infinite_threshold_is_not_drawn():
    page = Page(str(histogram([row("a", 1.0)], {"reject": math.inf, "review": None}, {}, 380, 250)))
    assert not page.all("line", "needle")
