"""The report of a benchmark: one page to read, and the same tables as Markdown, LaTeX, CSV and JSON to publish.

    from anomalens.apps import bench_report
    bench_report.report(["results.jsonl"], "benchmark-report")

Equal results give equal files, bit for bit: no file holds a time or a path of this computer.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from .. import files
from ..bench import results
from ..images import encode, read_image, resize, to_8bit
from ..synthesis import corruptions
from .bench_tables import NONE, Cell, Section, Table, count, findings, headline, layout, percent
from .report import WEB, data_uri

TILE = 132  # side of a picture on the page of corruptions, pixels


def report(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metric: str = "",
    baseline: str = "",
    pictures: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Read results files and write index.html, tables.md, tables.tex, tables.csv and summary.json into a folder.

    With disturbed cells also corruptions.html: every corruption of the benchmark at every grade, on a drawn picture.

    Args:
        paths: results files or folders that hold one; of a cell that comes twice the later one counts.
        metric, baseline: see `bench.results.summary`.
        pictures: a picture to show corruptions on, instead of the drawn one.

    Returns:
        The summary, with `words` (the findings in a few lines) and `files` (what was written).

    Raises:
        WrongInput: as `bench.results.read`. UnknownName: no such metric or method. CannotWrite: the disk refuses.
    """
    found = results.read(*paths)
    summary = results.summary(found, metric=metric, baseline=baseline)
    shown = sorted({name for d in summary["data"] if d["robustness"] for name in d["robustness"]["groups"]})
    sections = layout(summary)
    written = {
        "index.html": page(summary, sections, bool(shown)),
        "tables.md": markdown(summary, sections),
        "tables.tex": latex(summary, sections),
        "tables.csv": long_form(found),
        "summary.json": json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
    }
    if shown:
        written["corruptions.html"] = corruptions_page(shown, pictures)
    for name, text in written.items():
        files.write_atomic(Path(out) / name, text)
    index = Path(out) / "index.html"
    words = "\n".join([*findings(summary), f"report: {index}"])
    return {**summary, "words": words, "files": [str(Path(out) / name) for name in written]}


def page(summary: Mapping[str, Any], sections: Sequence[Section], with_corruptions: bool = False) -> str:
    """The HTML page, complete in itself."""
    style = (WEB / "report.css").read_text(encoding="utf-8") + (WEB / "bench.css").read_text(encoding="utf-8")
    data, counts = summary["data"], summary["counts"]
    return (
        _environment()
        .get_template("bench.html.j2")
        .render(
            summary=summary,
            headline=headline(summary),
            findings=findings(summary),
            sections=sections,
            style=Markup(style),
            facts={
                "Methods": len(summary["methods"]),
                "Data": ", ".join(d["title"] for d in data) or NONE,
                "Categories": sum(len(d["categories"]) for d in data),
                "Evaluations": f"{counts['ok']:,}" + (f" and {counts['failed']:,} failed" if counts["failed"] else ""),
                "Machine": "; ".join(_machine(m) for m in summary["machines"]) or NONE,
            },
            with_corruptions=with_corruptions,
        )
    )


def markdown(summary: Mapping[str, Any], sections: Sequence[Section]) -> str:
    parts = [f"# {_markdown(headline(summary))}", *map(_markdown, findings(summary))]
    for section in sections:
        parts.append(f"## {_markdown(section.title)}")
        if section.words:
            parts.append(_markdown(section.words))
        for table in section.tables:
            rows = [
                [_markdown(head) for head in _flat_heads(table)],
                ["---" if words else "---:" for words in table.wordy()],
            ]
            rows += [[_markdown(line.head), *map(_markdown_cell, line.cells)] for line in table.lines]
            drawn = "\n".join("| " + " | ".join(row) + " |" for row in rows)
            parts += [f"### {_markdown(table.title)}", drawn, *map(_markdown, [table.caption, *table.notes])]
    return "\n\n".join(parts) + "\n"


def latex(summary: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Tables for a paper; needs \\usepackage{booktabs}."""
    said = [headline(summary), *findings(summary)]
    parts = ["% Needs \\usepackage{booktabs}.", *(f"% {_latex(sentence)}" for sentence in said)]
    for table in (table for section in sections for table in section.tables):
        rows = []
        if table.groups:
            rows.append(
                " & ".join(f"\\multicolumn{{{n}}}{{c}}{{{_latex(words)}}}" for words, n in table.groups) + " \\\\"
            )
            at, rules = 1, []
            for words, n in table.groups:
                if words:
                    rules.append(f"\\cmidrule(lr){{{at}-{at + n - 1}}}")
                at += n
            rows.append("".join(rules))
        rows += [" & ".join(map(_latex, table.columns)) + " \\\\", "\\midrule"]
        for line in table.lines:
            if line.kind == "chance":
                rows.append("\\midrule")
            rows.append(" & ".join([_latex(line.head), *map(_latex_cell, line.cells)]) + " \\\\")
        words = " ".join([f"{table.title}.", table.caption, *table.notes])
        parts += [
            "",
            "\\begin{table}",
            "\\centering\\small",
            f"\\caption{{{_latex(words)}}}",
            f"\\label{{tab:{re.sub(r'[^a-z0-9-]', '-', table.key.lower())}}}",
            f"\\begin{{tabular}}{{{''.join('l' if words else 'r' for words in table.wordy())}}}",
            "\\toprule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
    return "\n".join(parts) + "\n"


COLUMNS = (
    "method", "name", "backbone", "fidelity", "shots", "mode", "data", "category", "corruption", "grade", "metric", "seed",
    "value", "percent", "low", "high", "floor", "reason",
)  # fmt: skip


def long_form(found: results.Results) -> str:
    """tables.csv: one row per method, data, category, corruption, grade, metric and seed. Grade 0 is the clean picture.

    value, low, high and floor are shares with 6 digits, empty where undefined (`reason` says why); percent is rounded as in
    the tables.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    described = results.described(found)
    for row in found.rows:
        cell, (method, data) = row["cell"], described[row["hash"]]
        held = cell["corruption"] or {"name": "", "grade": 0}
        for name, figure in row["figures"].items():
            low, high = figure.get("interval") or (None, None)
            numbers = [figure["value"], low, high, figure.get("floor")]
            value, *others = ["" if v is None else f"{v:.6f}" for v in numbers]
            writer.writerow(
                [method["title"], method["name"], method["backbone"], method["fidelity"], cell["shots"], cell["mode"], data,
                 cell["data"]["category"], held["name"], held["grade"], name, cell["seed"], value,
                 "" if figure["value"] is None else percent(figure["value"]), *others, figure.get("reason", "")]
            )  # fmt: skip
    return text.getvalue()


def corruptions_page(names: Sequence[str], picture: str | os.PathLike[str] | None = None) -> str:
    """Every corruption at every grade on one picture: a drawn one, unless the user gives another."""
    shown, words = _picture(picture)
    side = min(shown.shape[:2])
    top, left = (shown.shape[0] - side) // 2, (shown.shape[1] - side) // 2
    square = shown[top : top + side, left : left + side]
    rows = []
    for name in (n for n in corruptions.names() if n in names):
        card = corruptions.card(name)
        close = card.group in ("blur", "noise", "compression")  # to see detail
        tiles = []
        for grade in corruptions.GRADES:
            rng = np.random.default_rng(0)
            tile = to_8bit(corruptions.corrupt(square, name, grade, rng))
            if close:
                tile = tile[side // 4 : side // 4 + side // 2, side // 4 : side // 4 + side // 2]
            data = encode(resize(tile, (2 * TILE, 2 * TILE)), "JPEG", quality=78)
            amount = "" if grade == 0 or not card.amounts else f"{card.amounts[grade - 1]:g}"
            tiles.append({"grade": grade, "amount": amount, "picture": data_uri(data, "jpeg")})
        rows.append({"name": name, "card": card, "tiles": tiles, "close": close})
    style = (WEB / "report.css").read_text(encoding="utf-8") + (WEB / "bench.css").read_text(encoding="utf-8")
    template = _environment().get_template("bench_corruptions.html.j2")
    return template.render(rows=rows, words=words, style=Markup(style))


def _picture(path: str | os.PathLike[str] | None) -> tuple[np.ndarray, str]:
    if path is not None:
        return to_8bit(read_image(path)), "A picture of your own."
    from ..datasets.procedural import Procedural

    sample = next(s for s in Procedural("cookie").test() if s.label)
    return sample.image(), "A drawn cookie with a defect."


def _machine(machine: Mapping[str, Any]) -> str:
    cores = machine.get("cores")
    parts = [machine.get("cpu"), cores and count(cores, "core"), machine.get("system")]
    return ", ".join(str(part) for part in parts if part)


def _flat_heads(table: Table) -> list[str]:
    """Heads of the columns with the words above them, for formats with one line of heads."""
    above = [words for words, n in table.groups for _ in range(n)] or [""] * len(table.columns)
    return [f"{words} {head}".strip() for words, head in zip(above, table.columns, strict=True)]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text.replace("\n", " "))


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_markdown(cell.text)}**" if cell.strong and cell.text != NONE else _markdown(cell.text)
    return " ".join(part for part in (text, _markdown(cell.spread), _markdown(cell.second)) if part)


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$", "→": r"$\rightarrow$", "×": r"$\times$", "–": "--",
    "…": r"\ldots{}", "\n": " ", "[": "{[}", "]": "{]}", "\u00a0": "~",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _latex_cell(cell: Cell) -> str:
    text = f"\\textbf{{{_latex(cell.text)}}}" if cell.strong else _latex(cell.text)
    text += f"\\,{_latex(cell.spread)}" if cell.spread else ""
    return f"\\shortstack[r]{{{text}\\\\{{\\scriptsize {_latex(cell.second)}}}}}" if cell.second else text


def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True)
