"""Imports only go down the ladder, and light entry points stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anomalens

PACKAGE = Path(anomalens.__file__).parent
TOOLS = {"backbones", "parts", "synthesis", "reasoning", "datasets", "metrics"}
RUNG = {"core": 0, **dict.fromkeys(TOOLS, 1), "detectors": 2, "bench": 3, "apps": 4}
HEAVY = {
    "torch", "timm", "torchvision", "onnx", "onnxscript", "scipy", "sklearn", "tifffile", "imagecodecs", "diffusers",
    "transformers",
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def rung(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "core"


def targets(path: Path) -> set[str]:
    """Rungs of the package that a file imports, anywhere in it."""
    found = set()
    here = ("anomalens", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            full = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                name = (*full, alias.name) if full and full[0] == "anomalens" else ()
                if len(name) > 1:
                    found.add(name[1] if name[1] in RUNG else "core")
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("anomalens.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    own = rung(path)
    lazy_root = path == PACKAGE / "__init__.py"  # names load on first use; nothing is imported at start
    above = {t for t in targets(path) if RUNG.get(t, 0) > RUNG[own]}
    assert lazy_root or not above, f"{path.name} ({own}) imports {above}"
    if own == "detectors":
        assert "detectors" not in targets(path), f"{path.name} imports another detector; share through parts/"


def at_the_top(path: Path) -> tuple[set[str], set[str]]:
    """What importing a file imports: libraries, and private neighbours by stem."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    libraries = {a.name.split(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
    libraries |= {(n.module or "").split(".")[0] for n in top if isinstance(n, ast.ImportFrom) and not n.level}
    neighbours = {n.module or "" for n in top if isinstance(n, ast.ImportFrom) and n.level}
    return libraries, {name.rpartition(".")[2] for name in neighbours}


TORCH_ONLY = {"backbones/_clip.py"}  # networks as classes; imported inside functions, as the next test makes sure


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_heavy_libraries_are_imported_where_used(path):
    libraries, neighbours = at_the_top(path)
    if path.relative_to(PACKAGE).as_posix() not in TORCH_ONLY:
        assert not libraries & HEAVY, f"{path.name} imports {libraries & HEAVY} at the top"
    heavy = neighbours & {Path(name).stem for name in TORCH_ONLY}
    assert not heavy, f"{path.name} imports {heavy}, which loads torch, at the top"


def loaded_by(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in run.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import anomalens",
        "from anomalens.apps.cli import main",
        "import anomalens; anomalens.names(); anomalens.card('patchcore')",
        "from click.testing import CliRunner; from anomalens.apps.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0",
        "from click.testing import CliRunner; from anomalens.apps.cli import main\n"
        "assert CliRunner().invoke(main, ['list']).exit_code == 0",
    ],
)
def test_light_entry_points_load_nothing_heavy(code):
    assert not loaded_by(code) & {"numpy", "torch", "onnxruntime", "PIL", "timm", "jinja2"}


def test_the_library_works_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, anomalens as al\n"
        "from anomalens.types import Sample, View\n"
        "rng = np.random.default_rng(0)\n"
        "s = [Sample(str(i), {'image': View('image', lambda p=rng.integers(0, 255, (64, 64, 3)).astype('uint8'): p)})"
        " for i in range(3)]\n"
        "d = al.create('patchcore', image_size=64).fit(s); list(d.predict(s))"
    )
    assert "timm" not in loaded_by(code)
