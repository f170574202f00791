"""Every code block of the README and the docs runs, and the README's table is what the cards say."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from anomalens.datasets.procedural import Procedural

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(page, language, code, id=f"{page.relative_to(ROOT).as_posix()}:{i}")
    for page in PAGES
    for i, (language, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    if language in ("python", "console")
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with good/, new/ and a labelled category `cloth/`, as the pages assume."""
    cloth = Procedural("cloth", size=128, train_count=12, good_count=3, bad_count=4)
    cloth.write(tmp_path / "cloth")
    (tmp_path / "good").symlink_to(tmp_path / "cloth" / "train" / "good")
    (tmp_path / "new").symlink_to(tmp_path / "cloth" / "test")
    return tmp_path


@pytest.mark.parametrize(("page", "language", "code"), BLOCKS)
def test_code_blocks_run(page, language, code, folder):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if language == "python":
        run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return
    for line in code.splitlines():
        if line.startswith("$ anomalens"):
            run = subprocess.run(
                shlex.split(line[2:], comments=True), cwd=folder, env=env, capture_output=True, text=True
            )
            assert run.returncode == 0, f"{line}\n{run.stderr}"


def test_the_table_of_methods_is_up_to_date():
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "scripts" / "readme_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table.BEGIN in text
    assert table.renewed(text) == text, "run python scripts/readme_table.py"


def test_the_table_of_makers_is_up_to_date():
    from anomalens.apps.catalogue import maker_table

    text = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    assert maker_table() in text, "copy what anomalens.apps.catalogue.maker_table() gives"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
