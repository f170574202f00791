"""Renew the tables of docs/taxonomy.md from the cards: python scripts/taxonomy_table.py"""

from __future__ import annotations

from pathlib import Path

from anomalens.apps.catalogue import family_table, matrix

PAGE = Path(__file__).parents[1] / "docs" / "taxonomy.md"
TABLES = {
    "structural": lambda: matrix("structural"),
    "semantic": lambda: matrix("semantic"),
    "families": family_table,
}


def renewed(text: str) -> str:
    """The page with each table replaced by what the cards say now."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: made by scripts/taxonomy_table.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
