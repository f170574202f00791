"""One job: read the data, fit once, evaluate every cell that shares the fit. JSON text in, one JSON line per cell out."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, backbones, datasets, metrics, store
from ..detector import Detector, card
from ..errors import WrongInput
from ..parts.batches import ahead, batches
from ..synthesis import corruptions
from ..types import Prediction, Sample
from . import _pictures
from ._pictures import Readable
from .plan import POOLED, Cell, build, hash_of, learnt_under, parts

EXACT_PIXELS = (
    100_000_000  # pixels of maps that one evaluation keeps; above, its figures are streamed, without interval
)
TRAIN_DRAW = 1  # seed of what disturbs good pictures to learn from: another draw than that of the test pictures
MIXED_GRADES = (1, 2)  # at which mode `mixed` learns from disturbed pictures beside clean ones
TIMED = 64  # pictures on which predict and the bare forward pass are compared
LOOKS_THROUGH = (
    "backbone",
    "strides",
    "engine",
    "device",
    "threads",
    "image_size",
    "batch_size",
)  # settings, if it does

Row = dict[str, Any]


def work(text: str) -> Iterator[str]:
    """Rows of a job as lines of JSON; an error becomes rows that failed.

    text: {"cells": [...], "folder": where paths start, "shelf": folder for disturbed pictures or null}.
    """
    job = json.loads(text)
    waiting: dict[str, Cell] = {hash_of(cell): cell for cell in job["cells"]}
    try:
        fitted = Fit(job["cells"], Path(job["folder"]), job.get("shelf"))
        for group in passes(job["cells"], fitted.alone):
            try:
                for row in fitted.rows(group):
                    del waiting[row["hash"]]
                    yield json.dumps(row, allow_nan=False)
            except Exception as error:
                for cell in group:
                    if waiting.pop(hash_of(cell), None):
                        yield json.dumps(failed(cell, in_words(error)), allow_nan=False)
    except Exception as error:  # of any kind: a failed cell is a result, and the other jobs go on
        for cell in waiting.values():
            yield json.dumps(failed(cell, in_words(error)), allow_nan=False)


def failed(cell: Cell, error: str) -> Row:
    """The row of a cell that gave no result."""
    return {
        "hash": hash_of(cell), "cell": cell, "status": "failed", "error": error, "note": "", "detector_seed": None,
        "figures": {}, "scores": {"ids": [], "labels": [], "values": []}, "held_out": [], "replicates": {},
        "counts": {"fit": 0, "good": 0, "anomalous": 0, "left_out": 0, "unreadable": 0},
        "seconds": {"fit": None, "predict": None, "predict_cpu": None, "forward": None},
        "ratio": None, "memory_mb": None, "fitted_mb": None, "versions": versions(),
    }  # fmt: skip


def in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def versions() -> dict[str, str]:
    """What figures may depend on: the same for every way to run a plan on one installation."""
    found = {"anomalens": __version__, "python": platform.python_version()}
    for name in ("numpy", "onnxruntime", "pillow", "torch"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def passes(cells: Iterable[Cell], alone: bool = False) -> list[list[Cell]]:
    """Cells that are read off the same predictions: one corruption at one grade; all grades 0 are the clean pictures.

    alone: each category needs predictions of its own, because a prediction depends on the pictures beside it.
    """
    found: dict[Any, list[Cell]] = {}
    for cell in cells:
        corruption = cell["corruption"]
        at = (corruption["name"], corruption["grade"]) if corruption and corruption["grade"] else None
        found.setdefault((at, cell["data"]["category"] if alone else None), []).append(cell)
    return list(found.values())


class Fit:
    """A fitted detector with its test pictures, ready to make rows.

    alone: the method judges a batch as a whole.
    """

    def __init__(self, cells: Sequence[Cell], folder: Path, shelf: str | None = None) -> None:
        first = cells[0]
        about = [first["data"][key] for key in ("reader", "root", "options")]
        self.shelf = _pictures.Shelf(Path(shelf) if shelf else None, about)
        self.detector = build(first["method"]["name"], first["method"]["settings"], folder)
        self.seed = _seed(first) if self.detector.draws else None
        if self.seed is not None:
            self.detector = build(first["method"]["name"], first["method"]["settings"], folder, self.seed)
        self.alone = any("batched-zero-shot" in card(part.method).settings for part in parts(self.detector))
        good, tests = _data(first, folder)
        every = {sample.id: sample for some in tests.values() for sample in some}
        self.samples = {s.id: s for s in Readable([every[id] for id in sorted(every)], _pictures.KEEP).settled()}
        self.members = {name: [s.id for s in some if s.id in self.samples] for name, some in tests.items()}
        self.unreadable = {name: len(some) - len(self.members[name]) for name, some in tests.items()}
        self._left_out: dict[str, set[str]] = {}

        learn, held = _pictures.drawn(good, first["shots"], first["seed"], first["hold_out"])
        condition = learnt_under(first)
        train = Readable(_disturbed(learn, condition))
        start = time.perf_counter()
        if first["shots"] != 0:
            self.detector.fit(train)
        self.fit_seconds = time.perf_counter() - start
        self.count = 0 if first["shots"] == 0 else len(train.samples) - len(train.unreadable)
        # What a plant has to set its threshold with is as disturbed as what it learns from, unless that was on purpose.
        held = _disturbed(held, condition if first["mode"] == "matched" else None)
        self.held_out = [float(p.score) for p in self.detector.predict(Readable(held))] if held else []
        self.fitted_mb = _megabytes(self.detector)
        self._speed: tuple[float, float] | str | None = "not measured"

    def rows(self, cells: Sequence[Cell]) -> Iterator[Row]:
        """One row per cell of a pass."""
        corruption = cells[0]["corruption"]
        disturbing = corruption is not None and corruption["grade"] > 0
        populations = {hash_of(cell): frozenset(self.population(cell)) for cell in cells}
        # All pictures of the fit, also where some cells have rows already: in other batches numbers round otherwise.
        ids_judged = self.members[cells[0]["data"]["category"]] if self.alone else self.samples
        judged = [self.samples[id] for id in sorted(ids_judged)]
        tallies: dict[Any, Tally] = {}
        for cell in cells:
            ids = populations[hash_of(cell)]
            tallies.setdefault(ids, Tally(ids, cell["metrics"], masked=any(self.samples[i].mask for i in ids)))
        if disturbing:
            name, grade = corruption["name"], corruption["grade"]
            stay = [sample for sample in judged if sample.id not in self.left_out(name)]
            judged = self.shelf.disturbed(stay, name, grade)
        seconds, cpu = _predict(self.detector, judged, list(tallies.values()))
        found = {ids: tally.figures(whole=not disturbing) for ids, tally in tallies.items()}
        speed = self.speed()
        for cell in cells:
            ids = populations[hash_of(cell)]
            tally, (figures, replicates) = tallies[ids], found[ids]
            share = len(ids) / max(len(judged), 1)  # of the pictures that one pass judged for several cells
            yield {
                "hash": hash_of(cell), "cell": cell, "status": "ok", "error": "", "note": self.note(cell),
                "detector_seed": self.seed, "figures": figures,
                "scores": {"ids": tally.ids, "labels": tally.labels, "values": tally.values},
                "held_out": self.held_out, "replicates": replicates if not disturbing else {},
                "counts": {
                    "fit": self.count, "good": tally.labels.count(0), "anomalous": tally.labels.count(1),
                    "left_out": len(self.members[cell["data"]["category"]]) - len(ids),
                    "unreadable": self.unreadable[cell["data"]["category"]] + tally.unanswered,
                },
                "seconds": {
                    "fit": self.fit_seconds, "predict": seconds * share, "predict_cpu": cpu * share,
                    "forward": speed[1] * len(ids) if speed else None,
                },
                "ratio": speed[0] / speed[1] if speed else None, "memory_mb": _peak_memory(),
                "fitted_mb": self.fitted_mb, "versions": versions(),
            }  # fmt: skip

    def population(self, cell: Cell) -> list[str]:
        """Ids of the test pictures of a cell: those that survive its corruption at every grade."""
        members = self.members[cell["data"]["category"]]
        corruption = cell["corruption"]
        return [id for id in members if corruption is None or id not in self.left_out(corruption["name"])]

    def left_out(self, name: str) -> set[str]:
        if name not in self._left_out:
            self._left_out[name] = self.shelf.left_out(list(self.samples.values()), name)
        return self._left_out[name]

    def note(self, cell: Cell) -> str:
        return (
            "" if self.seed is not None or cell["shots"] not in ("full", 0) else "draws nothing: one run for all seeds"
        )

    def speed(self) -> tuple[float, float] | None:
        """Seconds per picture of predict and of its backbone alone, on pictures in memory; None without a backbone."""
        if isinstance(self._speed, str):
            self._speed = None
            if all(hasattr(self.detector, name) for name in LOOKS_THROUGH):
                with suppress(Exception):  # a backbone that is asked in another way costs the ratio, not the row
                    self._speed = _speed(self.detector, list(Readable(list(self.samples.values())[:TIMED])))
        return self._speed


@dataclass
class Tally:
    """What one evaluation collects while predictions stream by.

    members: ids that count. wanted: the metrics of a cell. masked: whether there is any mask to compare maps with.
    """

    members: frozenset[str]
    wanted: Mapping[str, Any]
    masked: bool
    ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    kept: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list)
    pixels: int = 0
    stream: metrics.PixelAccumulator | None = None
    why_not: str = ""  # pixel figures have no value
    unanswered: int = 0  # pictures the method gave no score for

    def add(self, prediction: Prediction, label: int, mask: np.ndarray | None) -> None:
        """mask: None where there is none, which says "no defect" of a good picture and nothing of another."""
        if math.isnan(prediction.score):
            self.unanswered += 1
            return
        self.ids.append(prediction.id)
        self.labels.append(label)
        self.values.append(float(prediction.score))
        if not self.masked:
            self.why_not = "there are no masks"
        elif prediction.map is None:
            self.why_not = "the method gives no map"
        elif mask is not None or not label:
            size = self.wanted["size"]
            policy = metrics.PixelEvalPolicy(size=tuple(size) if isinstance(size, list) else size)
            scores, truth, _ = metrics.pair(prediction.map, mask, policy)
            self.kept.append((scores, truth))
            self.pixels += scores.size
            if self.stream is None and self.pixels > EXACT_PIXELS:
                self.stream = metrics.PixelAccumulator()
            if self.stream is not None:
                for pair in self.kept:
                    self.stream.update(*pair)
                self.kept.clear()

    def figures(self, whole: bool) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """(figures, pixel replicates) by level and metric. whole: with intervals of pixel figures, which take longest."""
        image = metrics.image(self.values, self.labels, self.wanted["image"], allow_inf=True, interval=True)
        found = {f"image.{name}": _figure(m) for name, m in image.items()}
        replicates = {}
        for name, measured in self.pixel(whole).items():
            found[f"pixel.{name}"] = _figure(measured)
            if measured.replicates:
                replicates[f"pixel.{name}"] = [round(value, 5) for value in measured.replicates]
        return found, replicates

    def pixel(self, whole: bool) -> dict[str, metrics.Measured]:
        which, limits = self.wanted["pixel"], self.wanted["limits"]
        if self.why_not or not self.ids:
            undefined = metrics.Measured(
                math.nan, math.nan, math.nan, 0, 0, reason=self.why_not or "there is no picture"
            )
            return {key: undefined for name in which for key in _keys(name, limits)}
        if self.stream is None:
            maps, masks = zip(*self.kept, strict=True) if self.kept else ((), ())
            return metrics.pixel(maps, masks, limits=limits, which=which, interval=whole)
        curve, found = self.stream.curve(), {}
        for name in which:
            module = import_module(metrics.get(name).__module__)
            for key, settings in _keys(name, limits).items():
                try:
                    found[key] = self.stream.measure(module, curve, **settings)
                except WrongInput:
                    reason = f"it needs all of {self.pixels} pixels at once; set metrics.size, such as 256"
                    found[key] = metrics.Measured(math.nan, math.nan, math.nan, 0, 0, reason=reason)
        return found


def _keys(name: str, limits: Sequence[float]) -> dict[str, dict[str, float]]:
    """The results of a pixel metric and their settings: one for each limit where it has one."""
    of_curve = hasattr(import_module(metrics.get(name).__module__), "of_curve")
    if "region" in metrics.card(name).levels and of_curve:
        return {f"{name}@{limit:g}": {"limit": limit} for limit in limits}
    return {name: {}}


def _figure(measured: metrics.Measured) -> dict[str, Any]:
    return {
        "value": _finite(measured.value), "interval": measured.interval, "floor": _finite(measured.floor),
        "bound": measured.bound, "reason": measured.reason,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _data(cell: Cell, folder: Path) -> tuple[list[Sample], dict[str, list[Sample]]]:
    """Good samples to learn from, and the test samples of every category of the fit.

    Where one model serves several categories, a good picture that lies in several of them is one picture.
    """
    data, limit = cell["data"], cell["limit"]
    if cell["fit_on"] == data["category"]:
        train, test = _pictures.parts(data, data["category"], folder)
        return train, {data["category"]: _pictures.limited(test, limit)}
    every = cell["fit_on"] == "*"
    names = (
        _pictures.categories(data["reader"], data["root"], data["options"], folder)
        if every
        else cell["fit_on"].split("+")
    )
    both = {name: _pictures.parts(data, name, folder) for name in names}
    train = [sample for some, _ in both.values() for sample in some]
    good = [s for _, some in both.values() for s in some if s.label == 0]
    shared, stands_for = _pictures.distinct(good)
    by_id = {s.id: s for s in shared}
    tests = {}
    for name, (_, some) in both.items():
        named = {id: by_id[id] for id in dict.fromkeys(stands_for[s.id] for s in some if s.label == 0)}
        test = [*named.values(), *(s for s in some if s.label == 1)]
        tests[name] = _pictures.limited(sorted(test, key=lambda s: s.id), limit)
    tests[POOLED] = list({s.id: s for some in tests.values() for s in some}.values())
    return sorted(_pictures.distinct(train)[0], key=lambda s: s.id), tests


def _seed(cell: Cell) -> int:
    """The seed of the detector: that of the cell plus, for a category of its own, its place in the data set's card.

    Class-wise runs of a data set whose categories share their good pictures would otherwise be four times the same.
    """
    known = datasets.card(cell["data"]["reader"]).categories
    category = cell["fit_on"]
    return cell["seed"] + (known.index(category) if category in known else 0)


def _disturbed(samples: list[Sample], condition: Mapping[str, Any] | None) -> list[Sample]:
    """Good pictures as a mode gives them to fit: as they are, disturbed, or (no grade) clean beside weakly disturbed."""
    if condition is None:
        return samples
    if "grade" in condition:
        return [corruptions.apply(s, condition["name"], condition["grade"], TRAIN_DRAW) for s in samples]
    weak = [corruptions.apply(s, condition["name"], g, TRAIN_DRAW) for g in MIXED_GRADES for s in samples]
    return [*samples, *weak]


def _predict(detector: Detector, samples: list[Sample], tallies: list[Tally]) -> tuple[float, float]:
    """Judge the samples and tell the tallies; wall and CPU seconds of the judging alone."""
    masks = ahead(lambda s: s.mask.read() if s.mask is not None else None, samples)
    predictions = iter(detector.predict(samples))
    wall = cpu = 0.0
    for sample, mask in zip(samples, masks, strict=True):
        start, start_cpu = time.perf_counter(), time.process_time()
        prediction = next(predictions, None)
        wall, cpu = wall + time.perf_counter() - start, cpu + time.process_time() - start_cpu
        if prediction is None or prediction.id != sample.id:
            raise WrongInput(f"{detector.method} gave no prediction for {sample.id}; one per sample, in order, is due.")
        for tally in tallies:
            if sample.id in tally.members:
                tally.add(prediction, int(bool(sample.label)), mask)
    return wall, cpu


def _speed(detector: Any, samples: list[Sample]) -> tuple[float, float] | None:
    if not samples:
        return None
    start = time.perf_counter()
    for _ in detector.predict(samples):
        pass
    predict = time.perf_counter() - start
    net = backbones.network(detector)
    size, keep_aspect = (detector.image_size, detector.image_size), bool(getattr(detector, "keep_aspect", False))
    ready = [b.images for b in batches(samples, size, detector.batch_size, keep_aspect=keep_aspect)]
    start = time.perf_counter()
    for images in ready:
        net(images)
    if net.device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return predict / len(samples), (time.perf_counter() - start) / len(samples)


def _megabytes(detector: Detector) -> float:
    """Size of what fit has made, 10^6 bytes."""
    arrays: dict[str, np.ndarray] = {}
    store.pack(detector, "", arrays)
    return round(sum(array.nbytes for array in arrays.values()) / 1e6, 3)


def _peak_memory() -> float | None:
    """Largest resident memory of this process so far, 10^6 bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
