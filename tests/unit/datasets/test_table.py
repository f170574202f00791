"""The table of docs/datasets.md is what the cards say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from anomalens.datasets import card, names

ROOT = Path(__file__).parents[3]


def test_the_table_of_data_sets_is_up_to_date():
    spec = importlib.util.spec_from_file_location("datasets_table", ROOT / "scripts" / "datasets_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert table.BEGIN in text
    assert table.renewed(text) == text, "run python scripts/datasets_table.py"
    assert all(f"| `{name}` |" in text for name in names())


def test_readme_counts_the_public_data_sets():
    """Those of others: neither drawn nor the user's own."""
    public = [name for name in names() if card(name).home and card(name).licence != "yours"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"of {len(public)} public data sets" in text
