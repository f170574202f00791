"""The report of a benchmark: complete, well-formed, the same numbers in every format, the same bytes for the same results."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from anomalens.apps import bench_charts, bench_report, bench_tables
from anomalens.apps.bench_tables import Cell, Line, Table, apart, between, percent, short, signed
from anomalens.apps.cli import main
from anomalens.apps.report import WEB
from anomalens.bench import rad, results
from tests.unit.bench import made
from tests.unit.bench.made import cell, data, method, row

FILES = {"index.html", "tables.md", "tables.tex", "tables.csv", "summary.json"}
HOSTILE = "<script>alert(1)</script>&\"'{{ 7*7 }}_100%$#\\^~|[x]*y*"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Collects elements and text, and refuses what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with everything: two backbones, failures, undefined values, disturbances. (rows, folder, summary)"""
    folder = tmp_path_factory.mktemp("study")
    rows, plan = made.study(("bottle", "carpet", "screw"), (0, 1), ("rot", "gauss", "rad"), title="A drawn study")
    rows = [
        made.failed(r["cell"], "OutOfMemory: 50 % of {all} memory_mb; use batch=1.")
        if r["cell"]["method"]["name"] == "grnr" and r["cell"]["data"]["category"] == "screw"
        else r
        for r in rows
    ]
    path = made.write(folder / "results.jsonl", rows, plan=plan)
    with path.open("a") as file:
        file.write('{"half": ')
    return rows, folder, bench_report.report([path], folder / "report")


def written(study, name: str) -> str:
    return (study[1] / "report" / name).read_text(encoding="utf-8")


def test_all_files_are_there_and_equal_results_give_equal_bytes(study, tmp_path):
    _, folder, summary = study
    bench_report.report([folder], tmp_path / "again")
    names = {p.name for p in (folder / "report").iterdir()}
    assert names == FILES | {"corruptions.html"}
    for name in names:
        assert (folder / "report" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert json.loads(written(study, "summary.json")) == {
        k: v for k, v in summary.items() if k not in ("words", "files")
    }


def test_the_page_is_well_formed_complete_in_itself_and_accessible(study):
    for name in ("index.html", "corruptions.html"):
        text = written(study, name)
        page = Page(text)
        assert "<script" not in text
        addresses = [a.get("href") or a.get("src") or "" for tag, a in page.found if tag in ("a", "img", "link")]
        assert not [a for a in addresses if re.match(r"https?:|//", a)]
        assert all(img.get("alt") for img in page.all("img"))
    page = Page(written(study, "index.html"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(th.get("scope") in ("col", "row", "colgroup") for th in page.all("th"))
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert drawings
    assert all(svg.get("aria-label") for svg in drawings)
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)


def test_what_is_missing_is_said(study):
    text = Page(written(study, "index.html")).text
    failed = sum(r["status"] == "failed" for r in study[0])
    assert f"{failed} of {len(study[0])} evaluations failed" in text
    assert "1 line of the results could not be read" in text
    assert "50 % of {all} memory_mb" in text
    assert "no value in carpet: there is no anomalous item" in text
    assert "map stability" in text
    assert "cannot hold the rate" in text  # 15 held-out pictures, 1 %


def test_the_same_numbers_in_every_format(study):
    summary = study[2]
    table = summary["data"][0]["tables"][0]
    texts = [Page(written(study, "index.html")).text, written(study, "tables.md"), written(study, "tables.tex")]
    for line in table["rows"]:
        for figure in line["cells"].values():
            for text in texts:
                assert percent(figure["value"]) in text
                assert f"{percent(figure['interval'][0])}, {percent(figure['interval'][1])}" in text
    best = table["metrics"][0]["best"]
    value = percent(next(r for r in table["rows"] if r["method"] == best)["cells"]["image.auroc"]["value"])
    assert f"<strong>{value}</strong>" in written(study, "index.html")
    assert f"**{value}**" in written(study, "tables.md")
    assert f"\\textbf{{{value}}}" in written(study, "tables.tex")


def test_the_csv_has_a_row_per_figure(study):
    rows = list(csv.DictReader(written(study, "tables.csv").splitlines()))
    good = [r for r in study[0] if r["status"] == "ok"]
    assert len(rows) == sum(len(r["figures"]) for r in good)
    keys = {(r["method"], r["data"], r["category"], r["corruption"], r["grade"], r["metric"], r["seed"]) for r in rows}
    assert len(keys) == len(rows)
    undefined = [r for r in rows if r["category"] == "carpet" and r["metric"] == "pixel.ap"]
    assert {(r["value"], r["percent"], r["reason"]) for r in undefined} == {("", "", "there is no anomalous item")}
    first = next(r for r in rows if r["metric"] == "image.auroc")
    assert first["percent"] == percent(float(first["value"]))


def test_latex_has_balanced_braces_and_as_many_fields_as_columns(study):
    text = written(study, "tables.tex")
    bare = re.sub(r"\\\\|\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == text.count("\\toprule")
    for columns, body in re.findall(r"\\begin{tabular}{([lr]+)}(.*?)\\end{tabular}", text, re.DOTALL):
        for line in body.splitlines():
            if "&" in line and "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert set(re.sub(r"[\x00-\x7f]", "", text)) == set()  # every sign has its LaTeX


def test_signs_of_latex_and_markdown_are_escaped():
    escaped = bench_report._latex(r"50 % & a_b $5 #1 {x} \ ~^ [1] ± − → ·")
    assert escaped == (
        r"50 \% \& a\_b \$5 \#1 \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{} {[}1{]} "
        r"$\pm$ $-$ $\rightarrow$ $\cdot$"
    )
    assert bench_report._markdown("a|b *c* _d_ [e] <f>") == r"a\|b \*c\* \_d\_ \[e\] \<f\>"


def test_names_of_any_kind_do_no_harm(tmp_path):
    rows = [row(cell(method("somebodys", HOSTILE), data(HOSTILE, "folder", "x")), {"image.auroc": 0.9})]
    rows.append(made.failed(cell(method("padim"), data()), HOSTILE))
    made.write(tmp_path / "results.jsonl", rows, plan={"title": HOSTILE})
    bench_report.report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert Page(text).text.count(HOSTILE) > 2
    assert "<script" not in text
    for line in (tmp_path / "report" / "tables.md").read_text().splitlines():
        if line.startswith("| <") or line.startswith("| \\<"):
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3
    tex = (tmp_path / "report" / "tables.tex").read_text()
    assert "_100%" not in tex


def test_our_reading_of_a_paper_is_called_so_everywhere(tmp_path, monkeypatch):
    real = results.card_of("padim")
    monkeypatch.setattr(results, "card_of", lambda name: replace(real, fidelity="reading"))
    made.write(tmp_path / "results.jsonl", [row(cell(method("padim"), data()), {"image.auroc": 0.9})])
    bench_report.report([tmp_path], tmp_path / "report")
    for name in ("index.html", "tables.md", "tables.tex"):
        text = (tmp_path / "report" / name).read_text()
        assert text.count("PaDiM") == text.count("PaDiM (our reading)") > 3
    assert ",padim,,reading," in (tmp_path / "report" / "tables.csv").read_text()


def test_rad_is_set_beside_its_published_figures(tmp_path):
    ours = {"bolt": 0.947, "ribbon": 0.90, "sponge": 0.985, "tape": 0.992}
    rows = [row(cell(method("patchcore"), data(c, "rad")), {"image.auroc": v}) for c, v in ours.items()]
    made.write(tmp_path / "results.jsonl", rows)
    bench_report.report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "tables.md").read_text()
    assert "94.7 93.7 +1.0 reproduced" in text
    assert "**90.0** 98.7 −8.7 not reproduced" in text
    assert "95.6 97.5 −1.9 reproduced" in text
    assert all(name in text for name in rad.METHODS)


def test_one_method_one_category_needs_no_test_and_no_disturbances(tmp_path):
    made.write(tmp_path / "results.jsonl", [row(cell(method("padim"), data("")), {"image.auroc": 0.9})])
    summary = bench_report.report([tmp_path], tmp_path / "report")
    assert {p.name for p in (tmp_path / "report").iterdir()} == FILES
    text = Page((tmp_path / "report" / "index.html").read_text()).text
    assert "Bold" not in text
    assert summary["words"].startswith("MVTec AD: PaDiM reaches 90.0 % image AUROC.")


def test_a_perfect_score_is_not_called_certain(tmp_path):
    rows = [row(cell(method("padim"), data()), {}, [0, 1, 2, 3], [0, 0, 1, 1])]
    made.write(tmp_path / "results.jsonl", rows)
    bench_report.report([tmp_path], tmp_path / "report")
    assert "not that none is possible" in (tmp_path / "report" / "tables.md").read_text()


def test_several_data_sets_get_an_overview(tmp_path):
    rows = [row(cell(method("padim"), data("x", r)), {"image.auroc": v}) for r, v in (("mvtec", 0.9), ("visa", 0.7))]
    rows.append(row(cell(method("grnr"), data("x", "visa")), {"image.auroc": 0.8}))
    made.write(tmp_path / "results.jsonl", rows)
    bench_report.report([tmp_path], tmp_path / "report")
    text = (tmp_path / "report" / "tables.md").read_text()
    assert "| PaDiM | 90.0 | 70.0 | 80.0 |" in text
    assert "| GRNR | – | 80.0 | – |" in text


def test_a_picture_of_the_users_own(tmp_path, study):
    from PIL import Image

    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    text = bench_report.corruptions_page(["rot", "gauss"], tmp_path / "grey.png")
    page = Page(text)
    assert len(page.all("img")) == 12
    assert "A picture of your own" in page.text
    assert "A drawn cookie" in Page(written(study, "corruptions.html")).text


def test_the_command(tmp_path, study):
    out = tmp_path / "r"
    asked = ["report", str(study[1]), "--out", str(out), "--baseline", "padim", "--metric", "image.ap", "--json"]
    said = CliRunner().invoke(main, asked)
    assert said.exit_code == 0, said.output
    summary = json.loads(said.stdout)
    assert (summary["baseline"], summary["metric"]) == ("PaDiM · tiny", "image.ap")
    assert (out / "index.html").exists()
    refused = CliRunner().invoke(main, ["report", str(tmp_path / "nothing"), "--out", str(out)])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("anomalens: there is no results file")


# Numbers and drawings.


def test_numbers():
    assert [percent(v) for v in (0.9746, 1.0, 0.0, -0.031, None, -0.0001)] == [
        "97.5",
        "100.0",
        "0.0",
        "−3.1",
        "–",
        "0.0",
    ]
    assert [signed(v) for v in (1.04, -1.04, 0.04, -0.04, None)] == ["+1.0", "−1.0", "0.0", "0.0", "–"]
    assert apart(98.05, 99.2) == "−1.2"  # 98.0 is shown
    assert between([0.5, 0.75]) == "[50.0, 75.0]"
    assert [short(v) for v in (0.12345, 1.5, 123.4, 12345.0, 4.0, None)] == ["0.123", "1.5", "123", "12300", "4", "–"]


def test_columns_of_words_are_told_from_numbers():
    lines = [Line("a", [Cell("1.0"), Cell("yes")]), Line("chance", [Cell(""), Cell("")], "chance")]
    assert Table("k", "t", "c", ["m", "x", "y"], lines).wordy() == [True, False, True]


@pytest.mark.parametrize("values", [[0.98, 0.99], [0.5, 1.0], [0.2], [0.9999, 1.0], [0.0, 1.0]])
def test_an_axis_holds_its_values_in_round_steps(values):
    low, high, step = bench_charts.levels(values, 5)
    assert low <= min(values)
    assert max(values) <= high
    assert (high - low) / step == pytest.approx(round((high - low) / step))
    assert 1 <= round((high - low) / step) <= 8


def test_names_of_points_do_not_overlap_where_there_is_room():
    rng = np.random.default_rng(2)
    points = [
        (f"method {i}", float(x), float(y)) for i, (x, y) in enumerate(rng.uniform([80, 40], [980, 380], (12, 2)))
    ]
    spots = bench_charts.labels(points, (40, 0, 1080, 400))
    boxes = []
    for name, (x, y, anchor) in spots.items():
        wide = bench_charts.LETTER * len(name)
        start = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        boxes.append((start, y - 12, start + wide, y + 4))
    assert all(b[0] >= 0 and b[2] <= 1090 for b in boxes)
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if bench_charts._shared(a, b) > 0]


def test_methods_keep_one_look():
    methods = [
        {"title": f"{label}{backbone}", "label": label, "backbone": backbone, "shots": "full", "mode": "shift"}
        for label in "ab"
        for backbone in "xy"
    ]
    look = bench_charts.looks(methods)
    assert len({(v.colour, v.mark) for v in look.values()}) == 4
    assert look["ax"].colour == look["ay"].colour
    assert look["ax"].mark == look["bx"].mark


def test_words_on_the_strongest_colour_can_be_read():
    """Contrast of the ink on the fully coloured field, light and dark, at least 4.5 to 1 (WCAG AA)."""

    def rgb(text: str) -> np.ndarray:
        return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)], float)

    def luminance(colour: np.ndarray) -> float:
        c = colour / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    report, bench = ((WEB / f"{name}.css").read_text() for name in ("report", "bench"))
    for place in (0, 1):  # light, dark
        paper, ink = (rgb(re.findall(rf"--{name}: (#\w+)", report)[place]) for name in ("paper", "ink"))
        shade = np.array(re.findall(r"--shade: ([\d ]+);", bench)[place].split(), float)
        most = float(re.findall(r"--most: (\.\d+)", bench)[place])
        field = paper * (1 - most) + shade * most
        high, low = sorted((luminance(field), luminance(ink)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_findings_name_all_that_cannot_be_told_apart(study):
    said = bench_tables.findings(study[2])
    cells = {r["method"]: r["cells"]["image.auroc"] for r in study[2]["data"][0]["tables"][0]["rows"]}
    for title, figure in cells.items():
        assert (title in said[0]) == figure["tied"]
