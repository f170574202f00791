"""Renew the table of data sets in docs/datasets.md from the cards: python scripts/datasets_table.py"""

from __future__ import annotations

from pathlib import Path

from anomalens.datasets import card, names

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"
BEGIN, END = "<!-- data sets: made by scripts/datasets_table.py -->", "<!-- end of data sets -->"


def table() -> str:
    """One row per reader, in Markdown."""
    lines = [
        "| name | what it is | categories | to train on | to test on | masks | licence |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names():
        c = card(name)
        title = f"[{c.title}]({c.home})" if c.home else c.title
        train, test = (f"{n:,}" if any(c.pictures) else "-" for n in c.pictures)
        masks = "yes" if c.masks else "no"
        licence = c.licence + (", not commercial" if c.commercial is False else "")
        lines.append(
            f"| `{name}` | {title}. {c.summary} | {len(c.categories) or '-'} | {train} | {test} | {masks} | {licence} |"
        )
    lines += ["", "| name | layout |", "| --- | --- |", *(f"| `{name}` | `{card(name).layout}` |" for name in names())]
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """The page with the table replaced by what the cards say now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
