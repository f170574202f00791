"""What `anomalens stress` does: draw graded defects on good pictures, judge them, say and show which are found."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from .. import synthesis
from ..bench import stress as test
from ..bench.stress import Trial
from ..datasets.folder import Folder
from ..errors import CannotWrite, Unreadable, WrongInput
from ..files import write_atomic, writing
from ..images import encode, resize, to_8bit
from ..thresholds import percent
from ..types import Sample
from .bench_charts import svg
from .progress import Watch, counting, say
from .report import WEB, data_uri
from .tasks import good_ones, left_out, load, plan_of

TILE = 132  # side of a shown picture, pixels
WINDOW = 0.55  # of the picture's short side is shown around a defect
LEARNT = (
    "These good pictures score lower than nearly all good pictures that the detector had not seen: it has probably learnt "
    "from them, so new pictures may tell otherwise; give ones that it has not seen."
)
UNIT = re.compile(r"(\d) (%|px|mm)")
Row = dict[str, Any]


def stress(
    model: str,
    good: str,
    out: str,
    *,
    makers: Sequence[str] = test.MAKERS,
    sizes: Sequence[float] = test.SIZES,
    severities: Sequence[float] = test.SEVERITIES,
    pictures: int = test.PICTURES,
    where: str = "",
    wanted: float = test.WANTED,
    mm_per_pixel: float | None = None,
    rate: float | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Stress-test a saved detector on good pictures that it has not seen; write index.html and stress.json to `out`.

    good: a folder; where it has a test part, the good pictures of that, else all its good ones. makers: names, several may
    stand in one text with commas between. mm_per_pixel: above 0, to say sizes in millimetres too. See `bench.stress.run`
    for the other settings. An interrupted run with the same inputs is continued. Returns stress.json's content and "words".
    """
    if mm_per_pixel is not None and not (mm_per_pixel > 0 and math.isfinite(mm_per_pixel)):
        raise WrongInput(f"millimetres per pixel are a number above 0; got {mm_per_pixel:g}.")
    detector = load(model, device)
    folder = Folder(good)
    unseen = [s for s in folder.test() if s.label == 0]
    samples = unseen or good_ones(folder)
    named = [name.strip() for text in makers for name in text.split(",") if name.strip()]
    makers = [synthesis.create(name).name for name in dict.fromkeys(named)]
    sizes, severities = ([*dict.fromkeys(values)] for values in (sizes, severities))
    test.check(samples, makers, sizes, severities, pictures)
    if not 0 < wanted < 1:
        raise WrongInput(f"a probability of detection lies between 0 and 1; got {wanted:g}.")
    watch = Watch(quiet)
    readable = {s.id for s in watch(samples, "reading good pictures", len(samples))}
    samples = [s for s in samples if s.id in readable]
    if not samples:
        raise Unreadable(
            f"none of the good pictures of {good} could be read (first: {next(iter(watch.unreadable.values()))})"
        )
    part = ", its test part." if unseen and good_ones(folder) else "; they must not be ones it has learnt from."
    words = [f"Good pictures: {len(samples)} of {folder.root}{part}"]
    if watch.unreadable:
        words.append(left_out(watch.unreadable))
    for line in words:
        say(line, quiet)
    how = {"makers": makers, "sizes": sizes, "severities": severities, "pictures": pictures, "where": where}
    plan = {**plan_of(detector, good, None, samples, rate=rate, min_area=0, maps=False, seed=seed), **how}
    target = Path(out)
    total = len(samples) + len(makers) * len(sizes) * len(severities) * pictures
    with Ledger(target / "trials.jsonl", plan) as ledger:
        if ledger.trials:
            say(f"Going on: {len(ledger.trials)} of {total} trials are there already.", quiet)
        trials = test.run(
            detector, samples, makers=makers, sizes=sizes, severities=severities, pictures=pictures, where=where,
            rate=rate, seed=seed, known=ledger.trials,
        )  # fmt: skip
        for trial in counting(trials, "drawing defects and judging them", total, len(ledger.trials), quiet):
            ledger.add(trial)
        done = list(ledger.trials)
    calibration = detector.calibration
    assert calibration is not None  # the test refuses detectors without
    facts = {
        "method": detector.method, "model": model, "folder": good, "seed": seed, "mm_per_pixel": mm_per_pixel,
        "false_alarm_rate": calibration.rate(rate), "unreadable": watch.unreadable,
        "looks_learnt": test.looks_learnt(done, samples, calibration), **how,
        **test.summary(done, wanted=wanted, seed=seed),
    }  # fmt: skip
    facts["words"] = "\n".join([*findings(facts), f"Report: {target / 'index.html'}"])
    write_atomic(
        target / "stress.json", json.dumps({**facts, "words": findings(facts)}, indent=1, allow_nan=False) + "\n"
    )
    write_atomic(target / "index.html", page(facts, done, samples, seed))
    return facts


class Ledger:
    """trials.jsonl: the plan in its first line, then a trial in each, written as they come.

    Raises:
        CannotWrite: the file is of another plan, or the disk refuses.
    """

    def __init__(self, path: Path, plan: Row) -> None:
        self.path = path
        self.plan = json.loads(json.dumps(plan))
        self.trials: list[Trial] = []

    def __enter__(self) -> Ledger:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = list(_whole_lines(self.path))
            if len(rows) == 1:  # stopped before its first trial: nothing to lose
                rows = []
            if rows and rows[0] != {"plan": self.plan}:
                raise CannotWrite(
                    f"{self.path.parent} holds a stress test of other inputs or settings; choose another --out, or remove it."
                )
            self.trials = [Trial(**row) for row in rows[1:]]
            if not rows:
                write_atomic(self.path, json.dumps({"plan": self.plan}) + "\n")
            else:  # a line that an interruption cut in two is dropped
                write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)
        with writing(self.path):
            self._file.write(json.dumps(dataclasses.asdict(trial), allow_nan=False) + "\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # all is flushed: what a full disk refuses here has been said before
            self._file.close()


def _whole_lines(path: Path) -> Iterator[Row]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError:
            raise CannotWrite(f"{path} is damaged; choose another --out, or remove {os.fspath(path.parent)}.") from None


# --- in words ---------------------------------------------------------------------------------------------------------


def findings(facts: Mapping[str, Any]) -> list[str]:
    """What came out, a sentence for every kind of defect and one for the good pictures."""
    often = percent(facts["wanted"])
    lines = [_finding(name, maker, facts, often) for name, maker in facts["makers"].items()]
    good = facts["good"]
    low, high = good["interval"]
    lines.append(
        f"{good['rejected']} of {good['pictures']} good pictures were rejected as they are (95 % interval of the rate: "
        f"{percent(low)} to {percent(high)}){'; nothing was drawn on those.' if good['rejected'] else '.'}"
    )
    if low > facts["false_alarm_rate"]:
        lines.append(f"That is more than the {percent(facts['false_alarm_rate'])} promised: are these good pictures?")
    if facts["looks_learnt"]:
        lines.append(LEARNT)
    return lines


def headline(facts: Mapping[str, Any]) -> str:
    """The first kind of defect in one line."""
    name, maker = next(iter(facts["makers"].items()))
    title, often = synthesis.card(name).title, f"found with {percent(facts['wanted'])} probability"
    limit = telling(maker) if maker["trials"] else None
    if limit is None or limit["value"] is None:
        return f"{title}: no size that was tried is {often}"
    return f"{title} of {length(limit['value'], facts['mm_per_pixel'])}: {often} at {levels(limit['contrast'])}"


def telling(maker: Mapping[str, Any]) -> Mapping[str, Any]:
    """The limit at the middle contrast, or at the next stronger one that has one, else at the strongest."""
    limits = maker["smallest_size"][len(maker["smallest_size"]) // 2 :]
    return next((limit for limit in limits if limit["value"] is not None), limits[-1])


def _finding(name: str, maker: Mapping[str, Any], facts: Mapping[str, Any], often: str) -> str:
    title = synthesis.card(name).title
    if not maker["trials"]:
        return f"{title}: nothing could be drawn ({maker['why_not_drawn']})"
    limit = telling(maker)
    head, tail = (
        f"{title}: at a contrast of {levels(limit['contrast'])}",
        f"{maker['found']} of {maker['trials']} found",
    )
    if limit["value"] is None:
        largest = length(maker["curve"]["sizes"][1], facts["mm_per_pixel"])
        return f"{head} not even {largest} are shown to be found with {often} probability ({tail} in all)."
    smallest = length(limit["value"], facts["mm_per_pixel"])
    if limit["below"]:
        return f"{head} the smallest tried, {smallest}, are found with {often} probability already ({tail} in all)."
    upper = length(limit["upper"], facts["mm_per_pixel"]) if limit["upper"] else "not in the range tried"
    return f"{head} found with {often} probability from {smallest} on (95 % sure: {upper}; {tail} in all)."


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def length(pixels: float, mm_per_pixel: float | None) -> str:
    words = f"{figure(pixels, 3)} px"
    return f"{words} ({figure(pixels * mm_per_pixel)} mm)" if mm_per_pixel else words


def levels(contrast: float) -> str:
    return f"{figure(contrast)} grey levels"


def figure(value: float, digits: int = 2) -> str:
    """That many significant digits, and all digits before the point: 2.34 is 2.3, 234.5 is 230."""
    return f"{float(f'{value:.{digits}g}'):.10g}"


# --- the page ---------------------------------------------------------------------------------------------------------


def page(facts: Mapping[str, Any], trials: Sequence[Trial], samples: Sequence[Sample], seed: int) -> str:
    """The HTML page, complete in itself."""
    by_id = {s.id: s for s in samples}
    drawings = []
    for name, maker in facts["makers"].items():
        own = [t for t in trials if t.maker == name]
        drawings.append(
            {
                "name": name, "card": synthesis.card(name),
                "finding": _sentence(_finding(name, maker, facts, percent(facts["wanted"])).partition(": ")[2]),
                "maker": maker, "limits": [_limit_row(row, facts) for row in maker.get("smallest_size", ())],
                "contrasts": [_contrast_row(row, facts) for row in maker.get("lowest_contrast", ())],
                "lines": [levels(line["contrast"]) for line in maker.get("lines", ())],
                "wide": curves(maker, facts, 900, 300) if maker["trials"] else "",
                "narrow": curves(maker, facts, 420, 300) if maker["trials"] else "",
                "rows": tiles(own, by_id, facts, seed),
            }
        )  # fmt: skip
    style = "".join((WEB / f"{name}.css").read_text(encoding="utf-8") for name in ("report", "bench", "stress"))
    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    whole = environment.get_template("stress.html.j2").render(
        headline=headline(facts), sentences=findings(facts), facts=facts, makers=drawings, style=Markup(style),
        wanted=percent(facts["wanted"]), rate=percent(facts["false_alarm_rate"]),
    )  # fmt: skip
    return UNIT.sub("\\1\u00a0\\2", whole)  # no line breaks between a number and its unit


def _limit_row(limit: Mapping[str, Any], facts: Mapping[str, Any]) -> Row:
    scale = facts["mm_per_pixel"]
    value = "not in the range tried" if limit["value"] is None else length(limit["value"], scale)
    return {
        "contrast": figure(limit["contrast"]),
        "value": f"{value} or less" if limit["below"] else value,
        "upper": length(limit["upper"], scale) if limit["upper"] else "not in the range tried",
    }


def _contrast_row(limit: Mapping[str, Any], facts: Mapping[str, Any]) -> Row:
    value = "not in the range tried" if limit["value"] is None else figure(limit["value"])
    return {
        "size": length(limit["size"], facts["mm_per_pixel"]),
        "value": f"{value} or less" if limit["below"] else value,
        "upper": figure(limit["upper"]) if limit["upper"] else "not in the range tried",
    }


def tiles(trials: Sequence[Trial], by_id: Mapping[str, Sample], facts: Mapping[str, Any], seed: int) -> list[Row]:
    """For every severity, strongest first, a picture per size: its first trial, and how many of the cell were found."""
    rows = []
    for severity in sorted(facts["severities"], reverse=True):
        row = []
        for size in facts["sizes"]:
            cell = [t for t in trials if t.wanted_size == size and t.severity == severity]
            drawn = [t for t in cell if not t.error]
            shown: Row = {"size": size, "picture": "", "trials": len(drawn), "found": sum(t.found for t in drawn)}
            if drawn:
                first = drawn[0]
                shown |= {
                    "picture": _crop(test.draw(first, by_id[first.picture], seed, facts["where"])),
                    "px": length(float(np.mean([t.size for t in drawn])), facts["mm_per_pixel"]),
                    "contrast": figure(float(np.mean([t.contrast for t in drawn]))),
                    "tone": _tone(shown["found"] / len(drawn), facts["wanted"]),
                }
            row.append(shown)
        rows.append({"severity": severity, "cells": row})
    return rows


def _tone(share: float, wanted: float) -> str:
    return "pass" if share >= wanted else "review" if share >= 0.5 else "reject"


def _crop(made: Sample) -> str:
    """The surroundings of the defect as a small picture; every tile of a report has the same scale."""
    picture = to_8bit(made.image(next(iter(made.views))))
    assert made.mask is not None
    rows, columns = np.nonzero(made.mask.read())
    side = max(16, round(WINDOW * min(picture.shape[:2])))
    top, left = (
        int(np.clip(round(float(v.mean())) - side // 2, 0, max(0, n - side)))
        for v, n in zip((rows, columns), picture.shape[:2], strict=True)
    )
    return data_uri(
        encode(resize(picture[top : top + side, left : left + side], (2 * TILE, 2 * TILE)), "JPEG", quality=80), "jpeg"
    )


def curves(maker: Mapping[str, Any], facts: Mapping[str, Any], width: int, height: int) -> Markup:
    """Probability of detection over size (logarithmic), a line and its 95 % band for each of three contrasts."""
    left, right, top, bottom = 46.0, width - 12.0, 12.0, height - 46.0
    low, high = maker["curve"]["sizes"]
    scale = facts["mm_per_pixel"]
    span = max(math.log(high / low), 1e-6)

    def place(size: float, share: float) -> tuple[float, float]:
        return left + (right - left) * math.log(size / low) / span, bottom - (bottom - top) * share

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = place(low, share)[1]
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * share:g}</text>')
    y = place(low, facts["wanted"])[1]
    parts.append(f'<line class="front" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text x="{left + 6}" y="{y - 6:.1f}">{percent(facts["wanted"])}</text>')
    sizes = sorted({c["size"] for c in maker["cells"]})
    for size in _apart([s for s in sizes if low <= s <= high], lambda s: place(s, 0)[0]):
        x, shown = place(size, 0)[0], size * (scale or 1)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        words = figure(shown, 3 if shown >= 100 else 2)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{words}</text>')
    said = []
    for tone, line in enumerate(maker["lines"]):
        name = levels(line["contrast"])
        ups = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(p[0], p[3]) for p in line["points"]))
        downs = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(p[0], p[2]) for p in reversed(line["points"])))
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(p[0], p[1]) for p in line["points"]))
        parts.append(f'<polygon class="band s{tone + 1}" points="{ups} {downs}"/>')
        parts.append(f'<path class="line s{tone + 1} d{tone}" d="M{path}"><title>{escape(name)}</title></path>')
        said.append(f"{name}: " + ", ".join(f"{length(p[0], scale)} {100 * p[1]:.0f} %" for p in line["points"][::8]))
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    unit = "mm" if scale else "pixels"
    parts.append(f'<text x="{right}" y="{height - 6}" text-anchor="end">longest side, {unit}</text>')
    parts.append(f'<text x="0" y="{height - 6}">found, %</text>')
    return svg("detection", width, height, parts, "Probability of detection over size. " + "; ".join(said))


def _apart(values: Sequence[float], x: Any, gap: float = 30.0) -> list[float]:
    """Those of ascending values whose marks do not run into the one before."""
    kept: list[float] = []
    for value in values:
        if not kept or x(value) - x(kept[-1]) >= gap:
            kept.append(value)
    return kept
