"""Stored stages of a method whose golden.json holds one configuration per name; tolerances stand in its README."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(os.environ.get("ANOMALENS_PARITY") or Path(__file__).parents[2] / "../shared/parity")


@dataclass(frozen=True)
class Stages:
    """One configuration: its settings (as in golden.json) and its tensors by key."""

    name: str
    settings: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def __getitem__(self, key: str) -> np.ndarray:
        return self.tensors[key]

    def layers(self, kind: str) -> list[np.ndarray]:
        """feat_train or feat_test, finest layer first."""
        return [self.tensors[key] for key in sorted(self.tensors) if key.startswith(f"{kind}.")]


def stages(method: str) -> list[Any]:
    """Every configuration of a method as a pytest parameter; one skipped parameter where the folder is absent."""
    folder = ROOT / method
    if not (folder / "golden.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(f"no stored tensors at {folder} (set ANOMALENS_PARITY)"))]
    tensors = load_file(folder / "golden.safetensors")
    return [
        pytest.param(
            Stages(name, settings, {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")}),
            id=name,
        )
        for name, settings in json.loads((folder / "golden.json").read_text(encoding="utf-8")).items()
        if isinstance(settings, dict) and any(k.startswith(f"{name}.") for k in tensors)
    ]


def close(
    got: np.ndarray, stored: np.ndarray, absolute: float = 0.0, relative: float = 0.0, of_largest: float = 0.0
) -> None:
    """Fail with the largest difference unless |got - stored| <= absolute + relative |stored| + of_largest max|stored|."""
    got = np.asarray(got)
    assert got.shape == stored.shape, f"shape {got.shape}, stored {stored.shape}"
    difference = np.abs(got.astype(np.float64) - stored)
    allowed = absolute + relative * np.abs(stored) + of_largest * np.abs(stored).max()
    worst = float((difference - allowed).max())
    assert worst <= 0, f"largest difference {difference.max():.3g}, {worst:.3g} over what is allowed"
