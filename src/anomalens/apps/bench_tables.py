"""The tables and drawings of a benchmark's report, laid out once; `bench_report` writes them in every format.

Numbers are rounded here and nowhere else, so that the page, the paper and the plain text say the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from markupsafe import Markup

from .. import metrics
from ..bench import rad, results
from ..errors import UnknownName
from ..synthesis import corruptions
from . import bench_charts

NONE = "–"
GROUPS = ("viewpoint", "illumination", "blur", "noise", "compression", "compound")
FIDELITY = {
    "parity": "compared with the authors' code",
    "port": "complete, not compared",
    "reading": "our reading",
    "ours": "ours",
    "": "not of this library",
}


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    text, spread, second: 97.5, ±0.3 and the line below. strong: bold. note: a reason or a p-value, for who asks.
    shade: colour strength in [0, 1]; None for no colour.
    """

    text: str
    spread: str = ""
    second: str = ""
    strong: bool = False
    note: str = ""
    shade: float | None = None


@dataclass(frozen=True)
class Line:
    """A row: its head and its fields. kind: "chance", "published" or "" for an ordinary one."""

    head: str
    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table as all formats show it.

    key: anchor and LaTeX label. columns: heads of the fields; the first is that of the row heads. groups: (words, number
    of columns) above the columns. fold: on the page, closed until asked for, together with others of these words.
    """

    key: str
    title: str
    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    groups: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()
    fold: str = ""

    def wordy(self) -> list[bool]:
        """Which columns hold words rather than numbers; the first does."""
        columns = zip(*(line.cells for line in self.lines if not line.kind), strict=True)
        return [True, *(2 * sum(cell.text[:1].isalpha() for cell in column) > len(column) for column in columns)]


@dataclass
class Section:
    """What the page says about one data set, or about all of them."""

    key: str
    title: str
    words: str = ""
    tables: list[Table] = field(default_factory=list)
    speed: tuple[Markup, Markup] | None = None  # wide and narrow
    curves: list[tuple[str, str, Markup]] = field(default_factory=list)  # group, name, drawing
    keys: list[Markup] = field(default_factory=list)

    def folds(self) -> list[tuple[str, list[Table]]]:
        """The tables, those that are folded together as one."""
        return [(words, list(held)) for words, held in groupby(self.tables, key=lambda table: table.fold)]


# Numbers, rounded here and nowhere else.


def percent(share: float | None) -> str:
    """A share as people write it in this field: 97.5."""
    return NONE if share is None else _minus(f"{100 * share:.1f}")


def signed(points: float | None) -> str:
    """A difference in percent points: +0.4, −1.2."""
    return NONE if points is None else _minus(f"{points:+.1f}")


def apart(ours: float | None, theirs: float) -> str:
    """The difference between two figures in percent as they are shown, so that the reader's sum comes out."""
    return NONE if ours is None else signed(round(ours, 1) - theirs)


def between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{percent(interval[0])}, {percent(interval[1])}]"


def plus_minus(sd: float | None) -> str:
    return "" if sd is None else f"±{percent(sd)}"


def short(value: float | None, digits: int = 3) -> str:
    """A time, a size or a ratio to three digits: 0.123, 1.23, 123, 12300."""
    if value is None:
        return NONE
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text and abs(value) >= 1 else text


def chance(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def metric_words(name: str) -> tuple[str, str]:
    """(Image or Pixel, AUROC) of image.auroc; settings such as @0.3 stay."""
    level, _, rest = name.partition(".")
    stem, at, limit = rest.partition("@")
    try:
        title = metrics.card(stem).title
    except UnknownName:
        title = stem
    return level.capitalize(), title + at + limit


def metric_title(name: str) -> str:
    level, title = metric_words(name)
    return f"{level} {title}"


def in_words(name: str) -> str:
    """Within a sentence: image AUROC."""
    title = metric_title(name)
    return title[0].lower() + title[1:]


def method_words(method: Mapping[str, Any]) -> str:
    """Title of a method; who reads a number of ours of a paper that is not public is told so wherever it stands."""
    return f"{method['title']} (our reading)" if method["fidelity"] == "reading" else str(method["title"])


def category_words(category: str) -> str:
    return category or "all"


# What is said.


def headline(summary: Mapping[str, Any]) -> str:
    if summary["title"]:
        return str(summary["title"])
    categories = sum(len(d["categories"]) for d in summary["data"])
    return f"{count(len(summary['methods']), 'method')} on {count(categories, 'category', 'categories')}"


def findings(summary: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences, the most important first."""
    said = []
    names = _names(summary)
    metric = summary["metric"]
    for data in summary["data"]:
        for table in data["tables"]:
            column = next((m for m in table["metrics"] if m["metric"] == metric), None)
            if not column or not column["best"]:
                continue
            cells = {row["method"]: row["cells"][metric] for row in table["rows"]}
            best = cells[column["best"]]
            where = data["title"] + (f" ({table['group']})" if len(data["tables"]) > 1 else "")
            sentence = f"{where}: {names[column['best']]} reaches {percent(best['value'])} % {in_words(metric)}"
            if best["interval"]:
                sentence += f", 95 % interval {between(best['interval'])}"
            alike = [names[m] for m, cell in cells.items() if cell["tied"] and m != column["best"]]
            if alike:
                sentence += f"; not distinguishable from it: {', '.join(alike)}"
            elif column["tested"]:
                sentence += "; all others are distinguishably worse"
            said.append(sentence + ".")
        held = data["robustness"]
        if held and held["methods"]:
            scores = {m: row["grouped"] for m, row in held["methods"].items() if row["grouped"] is not None}
            if scores:
                top = max(scores, key=lambda m: scores[m])
                clean = percent(held["methods"][top]["clean"])
                said.append(
                    f"{data['title']}, disturbed: {names[top]} keeps most, {percent(scores[top])} % over all groups of "
                    f"disturbances ({clean} % on the same pictures undisturbed)."
                )
    return said + gaps(summary)


def gaps(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know is not there."""
    counts, said = summary["counts"], []
    if counts["failed"]:
        said.append(f"{counts['failed']} of {counts['cells']} evaluations failed; they are listed at the end.")
    if counts["damaged"]:
        said.append(
            f"{count(counts['damaged'], 'line')} of the results could not be read and {_is(counts['damaged'])} left "
            "out, as after an interrupted run."
        )
    if counts["repeated"]:
        said.append(f"{count(counts['repeated'], 'evaluation')} came more than once; the later one counts.")
    if counts["unreadable"]:
        said.append(f"Pictures that could not be read: {counts['unreadable']} over all clean evaluations.")
    if len(summary["machines"]) > 1:
        said.append("The results come from different machines: compare ratios, not seconds.")
    return said


def layout(summary: Mapping[str, Any]) -> list[Section]:
    """All tables and drawings in the order of reading."""
    look = bench_charts.looks(summary["methods"])
    sections = []
    if len(summary["data"]) > 1:
        sections.append(Section("all", "All data sets", tables=[overview_table(summary)]))
    for place, data in enumerate(summary["data"], 1):
        key = f"d{place}"
        tables = [main_table(summary, data, table, f"{key}-{i}") for i, table in enumerate(data["tables"], 1)]
        section = Section(key, data["title"], data_words(data), tables)
        points = speed_points(summary, data, look)
        if points:
            x_words = "pictures per second" if len(summary["machines"]) < 2 else "bare backbone's time over ours"
            y_words = metric_title(summary["metric"])
            section.speed = (
                bench_charts.scatter(points, data["front"], x_words, y_words, 1080, 440),
                bench_charts.scatter(points, data["front"], x_words, y_words, 380, 400),
            )
        tables.append(speed_table(summary, data, f"{key}-speed"))
        first = summary["metric"]
        ordered = sorted(data["by_category"], key=lambda name: name != first)
        others = "Other metrics by category"
        tables += [category_table(summary, data, m, f"{key}-{m}", others if m != first else "") for m in ordered]
        tables += [
            above_chance_table(summary, data, m, f"{key}-{m}-above-chance") for m in ordered if _has_floor(data, m)
        ]
        if data["published"]:
            tables.append(published_table(summary, data, f"{key}-published"))
        if data["rad"]:
            tables += [rad_table(summary, data, f"{key}-rad"), rad_context(summary, data, f"{key}-rad-all")]
        sections.append(section)
        if data["robustness"]:
            sections.append(disturbed_section(summary, data, look, f"{key}-disturbed"))
    ends = [methods_table(summary)]
    if summary["failed"]:
        ends.append(failed_table(summary))
    sections.append(Section("how", "How it was measured", tables=ends))
    return sections


def data_words(data: Mapping[str, Any]) -> str:
    n, of = len(data["categories"]), data["of_categories"]
    counted = f"{n} of {of} categories" if of and n != of else count(n, "category", "categories")
    pictures = data["pictures"]
    words = f"{counted}, {pictures['good']:,} good and {pictures['anomalous']:,} anomalous test pictures"
    words += ", one model for all categories" if data["one_model"] else ""
    words += f", at most {data['limit']} of a kind in each category" if data["limit"] else ""
    words += (
        f"; {percent(data['held_out'])} % of the good pictures kept from fit, for thresholds"
        if data["held_out"]
        else ""
    )
    return words + "."


# The tables.


def main_table(summary: Mapping[str, Any], data: Mapping[str, Any], table: Mapping[str, Any], key: str) -> Table:
    names, columns = _names(summary), table["metrics"]
    total = len(data["categories"])
    lines = []
    for row in table["rows"]:
        cells = [Cell(_seeds(row))]
        if any(r["categories"] != total for r in table["rows"]):
            cells.append(Cell(f"{row['categories']} of {total}"))
        figures = [figure_cell(row["cells"][column["metric"]], column, names) for column in columns]
        cells += figures if len(table["rows"]) > 1 else [replace(figure, strong=False, note="") for figure in figures]
        lines.append(Line(names[row["method"]], cells))
    extra = len(lines[0].cells) - len(columns)
    floors = [Cell(NONE if c["floor"] is None else percent(c["floor"])) for c in columns]
    if any(c["floor"] is not None for c in columns):
        lines.append(Line("chance", [*[Cell("")] * extra, *floors], "chance"))
    heads = ["method", "seeds", *["categories"] * (extra - 1), *(metric_words(c["metric"])[1] for c in columns)]
    levels = [metric_words(c["metric"])[0] for c in columns]
    groups = [("", 1 + extra), *((level, levels.count(level)) for level in dict.fromkeys(levels))]
    if levels != sorted(levels, key=list(dict.fromkeys(levels)).index):
        groups, heads = [], [*heads[: 1 + extra], *(metric_title(c["metric"]) for c in columns)]
    shots = f", {table['group']}" if len(data["tables"]) > 1 else ""
    return Table(
        key,
        f"Results on {data['title']}{shots}",
        main_caption(summary, table),
        heads,
        lines,
        groups,
        main_notes(data, table, names),
    )


def figure_cell(cell: Mapping[str, Any], column: Mapping[str, Any], names: Mapping[str, str]) -> Cell:
    if cell["value"] is None:
        return Cell(NONE, note=cell["reason"] or "undefined")
    partial = "" if cell["compared"] else f" ({count(cell['own'], 'category', 'categories')}, not compared)"
    if cell["best"]:
        note = "the best"
    elif cell["p"] is not None:
        note = f"{chance(cell['p'])} against {names[column['best']]}"
    else:
        note = ""
    strong = cell["compared"] and (cell["best"] or cell["tied"])
    return Cell(percent(cell["value"]) + partial, plus_minus(cell["sd"]), between(cell["interval"]), strong, note)


def main_caption(summary: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    cells = [cell for row in table["rows"] for cell in row["cells"].values()]
    words = "Percent: mean over categories of the mean over seeds"
    words += ", ± standard deviation over seeds" if any(cell["sd"] is not None for cell in cells) else ""
    words += ", [95 % interval] over test pictures" if any(cell["interval"] for cell in cells) else ""
    if any(column["tested"] for column in table["metrics"]):
        words += (
            ". Bold: the best, and whatever a test does not tell from it (paired bootstrap over pictures, stratified by "
            "label, and seeds; two-sided, level 0.05, Holm's correction over methods)"
        )
    elif len(table["rows"]) > 1:
        words += ". Bold: the best; differences were not tested"
    return words + "."


def main_notes(data: Mapping[str, Any], table: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Which categories a comparison leaves out, and why; metrics with the same gaps share a sentence."""
    gaps: dict[str, list[str]] = {}
    undefined: dict[str, list[str]] = {}
    for column in table["metrics"]:
        title = metric_title(column["metric"])
        cells = {row["method"]: row["cells"][column["metric"]] for row in table["rows"]}
        nowhere = [c for c in data["categories"] if all(c in cell["missing"] for cell in cells.values())]
        for c in nowhere:
            reasons = dict.fromkeys(cell["missing"][c] for cell in cells.values())
            undefined.setdefault(f"{category_words(c)}: {'; '.join(reasons)}", []).append(title)
        if column["left_out"]:
            lacking = []
            for m, cell in cells.items():
                missing = {c: why for c, why in cell["missing"].items() if c not in nowhere}
                if missing and cell["compared"]:
                    told = "; ".join(f"{category_words(c)}: {why}" for c, why in missing.items())
                    lacking.append(f"{names[m]} lacks {told}")
            counted = f"{len(column['categories'])} of {len(data['categories'])} categories"
            gaps.setdefault(f"compared on {counted} that all have ({'. '.join(lacking)})", []).append(title)
    every = len(table["metrics"])
    notes = [
        f"{'All metrics' if len(titles) == every and every > 1 else ', '.join(titles)}: {words}."
        for found in (gaps, {f"no value in {words}": titles for words, titles in undefined.items()})
        for words, titles in found.items()
    ]
    if any(cell["interval"] == [1, 1] for row in table["rows"] for cell in row["cells"].values()):
        notes.append("[100.0, 100.0] says that these pictures hold no error, not that none is possible.")
    return notes


def overview_table(summary: Mapping[str, Any]) -> Table:
    names, data = _names(summary), [d["title"] for d in summary["data"]]
    lines = [
        Line(names[row["method"]], [Cell(percent(row["values"][d])) for d in data] + [Cell(percent(row["mean"]))])
        for row in summary["overview"]
    ]
    caption = f"{metric_title(summary['metric'])}, percent; the mean where a method has all data sets."
    return Table("overview", "All data sets", caption, ["method", *data, "mean"], lines)


def speed_table(summary: Mapping[str, Any], data: Mapping[str, Any], key: str) -> Table:
    names = _names(summary)
    fields = ("fit_seconds", "ms", "cpu_ms", "per_second", "ratio", "memory_mb", "fitted_mb")
    heads = ("fit, s", "predict, ms", "CPU, ms", "pictures / s", "ratio", "memory, MB", "fitted, MB")
    lines = [
        Line(
            names[s["method"]] + ("\u00a0*" if s["method"] in data["front"] else ""),
            [Cell(percent(s["accuracy"])), *(Cell(short(s[f])) for f in fields)],
        )
        for s in data["speed"]
    ]
    return Table(
        key,
        f"What it costs on {data['title']}",
        f"{metric_title(summary['metric'])} in percent, then medians over evaluations: seconds to fit, time and processor "
        "time per picture, pictures per second, time as a multiple of the bare backbone's on the same pictures; highest "
        "memory of the process; size of what was learnt. * no other method is better and as fast.",
        ["method", metric_title(summary["metric"]), *heads],
        lines,
    )


def category_table(summary: Mapping[str, Any], data: Mapping[str, Any], metric: str, key: str, fold: str) -> Table:
    """Methods by categories, coloured from the lowest to the highest value."""
    held, names = data["by_category"][metric], _names(summary)
    categories = held["categories"]
    values = [cell["value"] for row in held["rows"].values() for cell in row.values() if cell["value"] is not None]
    lines = []
    for method, row in held["rows"].items():
        cells = [
            Cell(NONE, note=cell["reason"])
            if cell["value"] is None
            else Cell(percent(cell["value"]), plus_minus(cell["sd"]), shade=_share(cell["value"], values))
            for cell in (row[c] for c in categories)
        ]
        lines.append(Line(names[method], cells))
    if any(f is not None for f in held["floors"].values()):
        lines.append(Line("chance", [Cell(percent(held["floors"][c])) for c in categories], "chance"))
    reasons = _reasons(held["rows"], categories, names)
    return Table(
        key,
        f"{metric_title(metric)} by category, {data['title']}",
        "Percent, mean over seeds, ± standard deviation over seeds."
        + (" The last row is what constant scores reach." if lines[-1].kind else ""),
        ["method", *map(category_words, categories)],
        lines,
        notes=reasons,
        fold=fold,
    )


def above_chance_table(summary: Mapping[str, Any], data: Mapping[str, Any], metric: str, key: str) -> Table:
    held, names = data["by_category"][metric], _names(summary)
    categories = held["categories"]
    lines = []
    for method, row in held["rows"].items():
        shares = [row[c]["above_chance"] for c in categories]
        cells = [
            Cell(NONE, note=row[c]["reason"]) if v is None else Cell(percent(v), shade=max(0.0, v))
            for c, v in zip(categories, shares, strict=True)
        ]
        lines.append(Line(names[method], cells))
    return Table(
        key,
        f"{metric_title(metric)} above chance, {data['title']}",
        "Percent of the way from constant scores (0) to perfect ones (100): (value - chance) / (1 - chance).",
        ["method", *map(category_words, categories)],
        lines,
        fold="Above chance, by category",
    )


def published_table(summary: Mapping[str, Any], data: Mapping[str, Any], key: str) -> Table:
    names, total = _names(summary), data["of_categories"]
    lines = []
    for p in data["published"]:
        marks = {"best-on-test": "best epoch on the test set", "last": "last epoch", "unknown": "not stated"}
        partial = f"{p['categories']} of {total}" if total else str(p["categories"])
        cells = [
            metric_title(p["metric"]),
            percent(None if p["ours"] is None else p["ours"] / 100),
            f"{p['theirs']:.1f}",
        ]
        cells += [apart(p["ours"], p["theirs"]), partial, p["setting"], p["source"], marks[p["selection"]]]
        lines.append(Line(names[p["method"]], [Cell(text) for text in cells]))
    heads = ["method", "metric", "ours", "published", "difference", "categories", "their setting", "source", "epoch"]
    caption = (
        "Percent. Published figures are from the methods' cards; theirs are over all categories, ours over those in the "
        "column. A best epoch that was chosen on the test set is out of reach for everybody else."
    )
    return Table(key, f"Published figures on {data['title']}", caption, heads, lines)


def rad_table(summary: Mapping[str, Any], data: Mapping[str, Any], key: str) -> Table:
    names = _names(summary)
    categories = ["mean", *rad.TEST_ANOMALOUS]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for figure in data["rad"]:
        rows.setdefault((figure["method"], figure["metric"]), {})[figure["category"]] = figure
    verdicts = {True: "reproduced", False: "not reproduced", None: ""}
    lines = []
    for (method, metric), held in rows.items():
        cells = [Cell(metric_title(metric))]
        for category in categories:
            figure = held.get(category)
            if figure is None:
                cells.append(
                    Cell(NONE, note="not measured in all categories" if category == "mean" else "not measured")
                )
                continue
            theirs, verdict = figure["theirs"], verdicts[figure["reproduced"]]
            second = f"{theirs:.1f} {apart(figure['ours'], theirs)} {verdict}".rstrip()
            cells.append(Cell(percent(figure["ours"] / 100), "", second, figure["reproduced"] is False))
        lines.append(Line(names[method], cells))
    bands = "; ".join(
        f"{metric_title(f'{level}.{metric}')} {mean:g}" + (f", {one:g} in a category" if one else "")
        for (level, metric), (mean, one) in rad.BANDS.items()
    )
    return Table(
        key,
        "RAD: reproduced or not",
        "Percent; below ours the published figure, the difference and the verdict; bold: not reproduced. Reproduced: at most "
        f"so many points away in the mean: {bands}. Other figures have no rule; those of zero-shot methods "
        "inform, their prompts are unknown. AUPRO-RAD is the benchmark's own; AUPRO@0.3 is not comparable with it.",
        ["method", "metric", *categories],
        lines,
        notes=["The four categories share their 73 good pictures; the resamples of the intervals do too."],
    )


def rad_context(summary: Mapping[str, Any], data: Mapping[str, Any], key: str) -> Table:
    """The means of the eleven published methods with ours among them."""
    columns = [(level, metric) for level in rad.PUBLISHED for metric in rad.PUBLISHED[level]["mean"]]
    names = _names(summary)
    lines = []
    for method in rad.METHODS:
        published = [rad.PUBLISHED[level]["mean"][metric][rad.METHODS.index(method)] for level, metric in columns]
        lines.append(Line(method, [Cell(f"{value:.1f}") for value in published], "published"))
    whole = set(data["categories"]) >= set(rad.TEST_ANOMALOUS)
    for table in data["tables"] if whole else ():
        for row in table["rows"]:
            values = [(row["cells"].get(f"{level}.{metric}") or {}).get("value") for level, metric in columns]
            lines.append(Line(f"ours: {names[row['method']]}", [Cell(percent(value), strong=True) for value in values]))
    return Table(
        key,
        "RAD: all published means",
        "Percent, mean of the four categories. Plain rows as published (tables II and III of arXiv 2406.07176), bold ones "
        "measured here" + ("." if whole else "; ours are missing, because not all four categories were measured."),
        ["method", *(metric_words(f"{level}.{metric}")[1] for level, metric in columns)],
        lines,
        groups=[("", 1), *((level.capitalize(), len(rad.PUBLISHED[level]["mean"])) for level in rad.PUBLISHED)],
        fold="All published means of RAD",
    )


def methods_table(summary: Mapping[str, Any]) -> Table:
    lines = []
    for m in summary["methods"]:
        others = ", ".join(f"{k}={json.dumps(v)}" for k, v in m["settings"].items() if k != "backbone")
        cells = [m["name"], m["backbone"] or "its own", results.shots_words(m["shots"]), others or "default"]
        cells += [FIDELITY.get(m["fidelity"], m["fidelity"]), str(m["year"] or NONE)]
        lines.append(Line(method_words(m), [Cell(text) for text in cells]))
    heads = ["method", "name", "backbone", "normal pictures", "settings", "fidelity to its paper", "year"]
    return Table("methods", "Methods", "The methods and what was set.", heads, lines)


def failed_table(summary: Mapping[str, Any]) -> Table:
    names = _names(summary)
    lines = []
    for f in summary["failed"]:
        texts = (f["data"], category_words(f["category"]), str(f["seed"]), f["corruption"] or "clean", f["error"])
        lines.append(Line(names[f["method"]], [Cell(text) for text in texts]))
    heads = ["method", "data", "category", "seed", "pictures", "error"]
    return Table("failed", "What failed", "Evaluations without a result; no mean holds them.", heads, lines)


# Disturbances.


def disturbed_section(
    summary: Mapping[str, Any], data: Mapping[str, Any], look: Mapping[str, bench_charts.Look], key: str
) -> Section:
    held, names = data["robustness"], _names(summary)
    metric = metric_title(held["metric"])
    section = Section(key, f"{data['title']}, disturbed", disturbed_words(held, metric, names))
    values = [v for of in held["curves"].values() for curve in of.values() for v in curve if v is not None]
    if values:
        near = [
            f for f in held["floors"].values() if f is not None and f > min(values) - 0.2
        ]  # chance, if not far below
        span = bench_charts.levels([*values, *near], 5)
        for group in GROUPS:
            for name in (n for n, of in held["groups"].items() if of == group):
                lines = {m: of[name] for m, of in held["curves"].items()}
                title = corruptions.card(name).title
                drawing = bench_charts.curves(lines, held["floors"].get(name), span, look, title)
                section.curves.append((group, title, drawing))
        section.keys = [bench_charts.key(names[m], look[m]) for m in held["curves"]]
    if held["methods"]:
        section.tables += [
            scores_table(held, names, metric, f"{key}-scores"),
            costs_table(held, names, metric, f"{key}-costs"),
            corruption_table(held, names, metric, f"{key}-each"),
        ]
    section.tables.append(operating_table(held, names, f"{key}-operating"))
    return section


def disturbed_words(held: Mapping[str, Any], metric: str, names: Mapping[str, str]) -> str:
    words = [
        f"{metric} over five grades of each disturbance; grade 0 is the clean value of the same pictures. The dotted line is "
        "chance."
    ]
    if held["lost"]:
        lost = ", ".join(f"{name} {n}" for name, n in held["lost"].items())
        words.append(f"Pictures left out at every grade, because their defect leaves the frame: {lost}.")
    if held["not_compared"]:
        told = ", ".join(names[m] for m in held["not_compared"])
        words.append(f"Not in the tables, for want of corruptions, grades or categories: {told}.")
    if held["incomplete"]:
        words.append(f"Without all five grades, hence without measures: {', '.join(held['incomplete'])}.")
    return " ".join(words)


def scores_table(held: Mapping[str, Any], names: Mapping[str, str], metric: str, key: str) -> Table:
    present = [g for g in GROUPS if any(g in row["groups"] for row in held["methods"].values())]
    scores = [row["grouped"] for row in held["methods"].values() if row["grouped"] is not None]
    lines = []
    for m, row in held["methods"].items():
        grouped = Cell(
            percent(row["grouped"]),
            second=between(row["grouped_interval"]),
            strong=bool(scores) and row["grouped"] == max(scores),
            note="" if row["grouped"] is not None else "compound disturbances have no headline",
        )
        against = Cell("baseline") if m == held["baseline"] else _against(row, held)
        cells = [Cell(percent(row["clean"])), grouped, against, Cell(percent(row["mean"]))]
        for g in present:
            of_all = [other["groups"].get(g) for other in held["methods"].values()]
            cells.append(Cell(percent(row["groups"].get(g)), shade=_share(row["groups"].get(g), of_all)))
        lines.append(Line(names[m], cells))
    return Table(
        key,
        f"{metric} under disturbances",
        "Percent, mean over grades 1 to 5. mCS_g, the headline: mean of the means of groups (compounds do not count); "
        "mCS: mean over all corruptions. [95 % interval]: paired bootstrap over pictures, stratified by label; a difference "
        "to the baseline whose interval holds 0 tells nothing.",
        ["method", "clean", "mCS_g", "against baseline", "mCS", *present],
        lines,
    )


def _against(row: Mapping[str, Any], held: Mapping[str, Any]) -> Cell:
    base = held["methods"][held["baseline"]]["grouped"]
    if row["grouped"] is None or base is None:
        return Cell(NONE)
    return Cell(signed(100 * (row["grouped"] - base)), second=between(row["against_baseline"]))


def costs_table(held: Mapping[str, Any], names: Mapping[str, str], metric: str, key: str) -> Table:
    lines = []
    for m, row in held["methods"].items():
        half = row["half_life"]
        cells = [
            percent(row["drop"]),
            percent(row["relative_drop"]),
            percent(row["area"]),
            percent(row["normalised_area"]),
        ]
        cells += [short(row["error_ratio"]), short(row["drop_ratio"]), half["reason"] or f"{half['value']:.1f}"]
        lines.append(Line(names[m], [Cell(text) for text in cells]))
    return Table(
        key,
        f"What disturbances cost in {metric}",
        "drop: clean minus disturbed, in points; relative drop: as a share of what is above chance; AUSC: area under the "
        "curve over grades 0 to 5; nAUSC: the same between chance (0) and no loss (100), all in percent. rCE and drop ratio: "
        f"error and drop as a multiple of those of {names.get(held['baseline'], NONE)}, below 1 is better. s50: grade at "
        "which half of what was learnt is lost. Means over corruptions, medians for drop ratio and s50.",
        ["method", "drop", "relative drop", "AUSC", "nAUSC", "rCE", "drop ratio", "s50"],
        lines,
    )


def corruption_table(held: Mapping[str, Any], names: Mapping[str, str], metric: str, key: str) -> Table:
    columns = [name for name in held["groups"] if name not in held["incomplete"]]
    scores = {m: [row["by_corruption"][c]["score"] for c in columns] for m, row in held["methods"].items()}
    every = [v for row in scores.values() for v in row]
    lines = [Line(names[m], [Cell(percent(v), shade=_share(v, every)) for v in row]) for m, row in scores.items()]
    lines.append(Line("chance", [Cell(percent(held["floors"][c])) for c in columns], "chance"))
    caption = "Percent, mean over grades 1 to 5."
    return Table(key, f"{metric} by disturbance", caption, ["method", *columns], lines)


def operating_table(held: Mapping[str, Any], names: Mapping[str, str], key: str) -> Table:
    lines = []
    rates = [rate for rate in next(iter(held["operating"].values())) if rate != "held_out"]
    for m, row in held["operating"].items():
        number = row["held_out"]
        cells = [Cell(str(number)) if number else Cell(NONE, note="nothing was held out")]
        for rate in rates:
            for kind in ("false_alarms", "recall"):
                clean, disturbed = row[rate]["clean"][kind], row[rate]["disturbed"][kind]
                cells.append(Cell(NONE if clean is None else f"{percent(clean)} → {percent(disturbed)}"))
        stable = held["stability"][m]
        cells.append(Cell(NONE if stable is None else _minus(f"{stable:.2f}")))
        lines.append(Line(names[m], cells))
    heads = [f"{what}, {100 * float(rate):g} %" for rate in rates for what in ("false alarms", "recall")]
    fewest = min(row["held_out"] for row in held["operating"].values())
    notes = [
        f"A threshold for {100 * float(rate):g} % is the highest of {fewest} scores: that many cannot hold the rate."
        for rate in rates
        if 0 < fewest * float(rate) < 1
    ]
    notes.append("Agreement of heat maps before and after (map stability) is not here: results hold no maps.")
    return Table(
        key,
        "At a threshold from clean pictures",
        "What a plant feels: shares of good pictures rejected (false alarms) and of anomalous ones found (recall), clean → "
        "disturbed, in percent, at the threshold that clean held-out good pictures set for the rate. Stability: rank "
        "correlation of the good pictures' scores before and after, 1 is perfect, no labels needed.",
        ["method", "held out", *heads, "stability"],
        lines,
        notes=notes,
    )


def _minus(text: str) -> str:
    """A true minus sign, and none before (or a plus sign before) a zero."""
    return text.lstrip("+-") if not float(text) else text.replace("-", "−")


def _names(summary: Mapping[str, Any]) -> dict[str, str]:
    return {m["title"]: method_words(m) for m in summary["methods"]}


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _is(number: int) -> str:
    return "was" if number == 1 else "were"


def _seeds(row: Mapping[str, Any]) -> str:
    few, many = row["seeds"]
    return NONE if not many else str(many) if few == many else f"{few}–{many}"


def _share(value: float | None, values: Sequence[float | None]) -> float | None:
    """Place of a value between the lowest and the highest one."""
    known = [v for v in values if v is not None]
    if value is None or not known:
        return None
    return (value - min(known)) / (max(known) - min(known)) if max(known) > min(known) else 0.5


def _reasons(rows: Mapping[str, Any], categories: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Why fields are empty; one sentence for all methods where they agree."""
    found: dict[str, list[str]] = {}
    for method, row in rows.items():
        for c in categories:
            if row[c]["value"] is None:
                found.setdefault(f"{category_words(c)}: {row[c]['reason']}", []).append(names[method])
    return [
        f"{words}" + ("" if len(who) == len(rows) else f" ({', '.join(who)})") + "." for words, who in found.items()
    ]


def _has_floor(data: Mapping[str, Any], metric: str) -> bool:
    return any(floor is not None for floor in data["by_category"][metric]["floors"].values())


def speed_points(
    summary: Mapping[str, Any], data: Mapping[str, Any], look: Mapping[str, bench_charts.Look]
) -> list[bench_charts.Point]:
    """Methods in the drawing of accuracy against speed; from several machines only the ratio to the backbone compares."""
    names, one_machine = _names(summary), len(summary["machines"]) < 2
    points = []
    for s in data["speed"]:
        x = s["per_second"] if one_machine else s["ratio"] and 1 / s["ratio"]
        if s["accuracy"] is None or not x:
            continue
        told = f"{percent(s['accuracy'])} %, {short(s['per_second'])} pictures per second, {short(s['ms'])} ms each"
        points.append(
            bench_charts.Point(s["method"], x, s["accuracy"], f"{names[s['method']]}\n{told}", look[s["method"]])
        )
    return points
