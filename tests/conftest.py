"""What every test may use: drawn samples, and the data pack beside the repository where there is one."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from anomalens.types import Sample

# The same examples at every run, and no clock: a change is judged by what it changed. `pytest --hypothesis-profile=search`
# draws new ones.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None)
settings.load_profile("suite")

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("ANOMALENS_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data and weights pack; tests that need it are skipped without it."""
    if not (SHARED / "data").exists():
        pytest.skip(f"the data pack is not at {SHARED} (set ANOMALENS_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def resnet18(shared: Path) -> str:
    """A backbone name with real ImageNet weights."""
    pytest.importorskip("timm")
    return f"timm:resnet18@{shared / 'weights' / 'resnet18_stem_to_layer3.safetensors'}"


@pytest.fixture(scope="session")
def drawn():
    from anomalens.datasets.procedural import Procedural

    return Procedural("leather", size=128, seed=0, train_count=12, good_count=6, bad_count=6)


@pytest.fixture(scope="session")
def good(drawn) -> list[Sample]:
    """Twelve normal pictures, 128 x 128."""
    return drawn.train()


@pytest.fixture(scope="session")
def mixed(drawn) -> list[Sample]:
    """Normal and anomalous pictures with masks, 128 x 128."""
    return drawn.test()
