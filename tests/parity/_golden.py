"""Stored tensors of other people's code, and the tolerances that were agreed for them.

A folder holds golden.safetensors and golden.json. The JSON names cases and runs, says which tensors are inputs or
weights, and gives one tolerance for every other tensor and precision, by shell-style patterns (`*` also matches dots).
A tensor is named case, run and key joined by dots, empty parts left out. The folders lie in the environment variable
ANOMALENS_PARITY, or beside the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(os.environ.get("ANOMALENS_PARITY") or Path(__file__).parents[2] / "../shared/parity")


@dataclass(frozen=True)
class Golden:
    """The stored tensors of one method. config: golden.json as it is."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return self.config["cases"]

    @property
    def expected(self) -> list[str]:
        """Tensors to reproduce: all but inputs and weights."""
        given = [*self.config["inputs"], *self.config["weights"]]
        return [name for name in self.tensors if not any(fnmatchcase(name, pattern) for pattern in given)]

    def split(self, name: str) -> tuple[str, str, str]:
        """A tensor's name in its parts (case, run, key); a tensor that belongs to no run has run ''."""
        case, rest = "", name
        for other in sorted(filter(None, self.cases), key=len, reverse=True):
            if name.startswith(other + "."):
                case, rest = other, name[len(other) + 1 :]
                break
        runs = self.cases[case].get("runs", {}) if case in self.cases else {}
        run, dot, key = rest.partition(".")
        return (case, run, key) if dot and run in runs else (case, "", rest)

    def tensor(self, case: str, run: str, key: str) -> np.ndarray:
        return self.tensors[".".join(part for part in (case, run, key) if part)]

    def rule(self, name: str, precision: str) -> dict[str, Any]:
        """The one tolerance that speaks of this tensor in this precision."""
        rules = self.config["tolerances"][precision]
        matches = [pattern for pattern in rules if fnmatchcase(name, pattern)]
        assert len(matches) == 1, f"{name} matches {matches or 'no tolerance'} in {precision}"
        return rules[matches[0]]

    def check(
        self, name: str, got: np.ndarray, precision: str, regions: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Fail unless `got` is the stored tensor within its tolerance; skip where the rules leave it out.

        regions: for every region that a rule may name, a mask of the tensor's shape, True where it is compared.
        """
        rule = self.rule(name, precision)
        if rule.get("skip"):
            pytest.skip(f"{name} is not compared in {precision}")
        region = rule.get("region")
        complaint = mismatch(got, self.tensors[name], rule, (regions or {})[region] if region else None)
        assert not complaint, f"{name} in {precision}: {complaint}"


def mismatch(got: np.ndarray, stored: np.ndarray, rule: Mapping[str, Any], region: np.ndarray | None = None) -> str:
    """'' where `got` equals `stored` by the rule's mode, value, index and fraction, else what is wrong."""
    got, stored = np.asarray(got), np.asarray(stored)
    if got.shape != stored.shape:
        return f"shape {got.shape}, stored {stored.shape}"
    if region is not None:
        got, stored = got[region], stored[region]
    mode = rule["mode"]
    if mode == "set":
        missing, extra = set(stored.flat) - set(got.flat), set(got.flat) - set(stored.flat)
        return f"without {sorted(missing)}, with {sorted(extra)}" if missing or extra else ""
    if mode == "exact":
        return "" if np.array_equal(got, stored) else f"{np.mean(got != stored):.2%} of the entries differ"
    got, stored = got.astype(np.float64), stored.astype(np.float64)
    allowed = {"abs": 1.0, "rel": np.abs(stored), "rel_max": np.abs(stored).max(initial=0)}[mode] * rule["value"]
    away = np.abs(got - stored)
    good = away <= allowed  # False for NaN
    if "index" in rule:
        good, away = good.flat[rule["index"]], away.flat[rule["index"]]
    if np.mean(good) >= rule.get("fraction", 1):
        return ""
    return f"{np.mean(good):.3%} within {mode} {rule['value']}, largest difference {np.max(away):.3g}"


def load(method: str) -> Golden:
    """The stored tensors of a method; skips the module where they are absent."""
    folder = ROOT / method
    if not (folder / "golden.json").exists():
        pytest.skip(f"no stored tensors in {folder}; set ANOMALENS_PARITY", allow_module_level=True)
    config = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    return Golden(config, load_file(folder / "golden.safetensors"))
