"""Renew the table of methods in README.md from the cards: python scripts/readme_table.py"""

from __future__ import annotations

from pathlib import Path

from anomalens.apps.catalogue import methods_table

BEGIN, END = "<!-- methods: made by scripts/readme_table.py -->", "<!-- end of methods -->"


def renewed(text: str) -> str:
    """README text with the table replaced by what the cards say now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{methods_table()}{END}{after}"


if __name__ == "__main__":
    readme = Path(__file__).parents[1] / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8")), encoding="utf-8")
