"""What the benchmarks on real pictures share: scoring, the cost of a fit, and files of JSON lines that go on."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import anomalens as al
from anomalens import metrics
from anomalens.metrics import PixelEvalPolicy
from anomalens.types import Sample

STATUS = Path("/proc/self/status")  # Linux; elsewhere memory is not told
RESET_PEAK = "5"  # what /proc/self/clear_refs takes


def judged(detector: Any, test: list[Sample], side: int) -> dict[str, float]:
    """Image AUROC, pixel AUROC on a grid of side x side where there are masks, and CPU seconds per picture."""
    began = time.process_time()
    found = list(detector.predict(test))
    seconds = (time.process_time() - began) / len(test)
    labels = [int(s.label or 0) for s in test]
    out = {"image": metrics.image([p.score for p in found], labels, ["auroc"])["auroc"].value, "predict": seconds}
    if all(s.mask for s in test if s.label):
        masks = [s.mask.read() if s.mask else None for s in test]
        out["pixel"] = metrics.pixel([p.map for p in found], masks, PixelEvalPolicy(size=side), which=["auroc"])[
            "auroc"
        ].value
    return out


def cost(fit: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of a fit, and by how many MB it raises the peak of resident memory."""
    before, began = _resident("VmRSS", reset=True), time.process_time()
    fit()
    return {"fit": time.process_time() - began, "peak MB": _resident("VmHWM") - before}


def _resident(name: str, reset: bool = False) -> float:
    """MB of this process, from the kernel; not a number where there is no such file."""
    if not STATUS.exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    return next(int(line.split()[1]) / 1e3 for line in STATUS.read_text().splitlines() if line.startswith(name))


def stored(detector: Any) -> float:
    """MB of the saved model."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        al.save(detector, place)
        return sum(f.stat().st_size for f in (place.rglob("*") if place.is_dir() else [place]) if f.is_file()) / 1e6


def going_on(path: Path, jobs: list[dict[str, Any]], run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Run what the file does not hold yet; every result is a line of it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = rows(path, {})
    for number, job in enumerate(jobs, 1):
        if any(job.items() <= row.items() for row in known):
            continue
        result = {**job, **run(job)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        told = ", ".join(f"{k} {v:.3f}" for k, v in result.items() if isinstance(v, float))
        print(f"{number}/{len(jobs)} {' '.join(str(v) for v in job.values())}: {told}", flush=True)


def rows(path: Path, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the file that were made with these settings."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if key.items() <= row.items()]


def spread(found: Iterator[float] | list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    values = np.array(list(found))
    if not len(values):
        return "-"
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"
