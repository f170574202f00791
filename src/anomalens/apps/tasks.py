"""What the commands do, as functions: folder in, report out. Each returns the summary it has also written."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import textwrap
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, store
from .. import detector as registry
from ..backbones import card as backbone_card
from ..calibrate import fit_calibrated
from ..datasets import open_folder
from ..datasets.folder import Folder
from ..datasets.json_lines import JsonLines
from ..detector import Detector, create, setting_types
from ..errors import Unreadable, WrongInput, unknown
from ..files import write_atomic
from ..parts.sizes import parse_bytes
from ..parts.train import rank
from ..reasoning.pictures import on_its_grid
from ..regions import find_regions
from ..registry import resolve
from ..thresholds import Calibration, percent, review_rate, stands_out
from ..types import Prediction, Sample, Verdict
from . import recommend
from .explain import Explain
from .explain import explain as second_stage
from .naming import called
from .progress import Watch, say, shown_training
from .report import Summary
from .run_folder import RunFolder

EXACT_PIXELS = 60_000_000  # pixels of maps that evaluate keeps for exact figures with intervals; 240 MB
OWN_REGIONS = (5.0, 8.0)  # robust standard deviations above the median of a map: where a region ends, and must reach
Listed = Folder | JsonLines  # what there is to learn from or to judge
WITH_GOOD, WITHOUT_GOOD = "patchcore", "grnr"  # what inspect uses when no method is named


def inspect(
    new: str,
    good: str | None,
    out: str,
    *,
    method: str | None = None,
    save_model: str | None = None,
    rate: float | None = None,
    min_area: int = 4,
    maps: bool = True,
    seed: int = 0,
    quiet: bool = False,
    explain: Explain | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Learn from `good` (or use a method that needs no good picture), judge `new`, write the report to `out`.

    explain: what to ask a model about what was flagged. An interrupted run with the same inputs is continued. Returns
    {"words", "report", "counts", ...}, JSON-able.
    """
    watch = Watch(quiet)
    if good and save_model:
        store.require_target(save_model)
    pictures = open_folder(new)
    learn = open_folder(good) if good else None
    fresh, words = apart(pictures, learn)
    detector, choice = choose(method, learn is not None, new=new, good=good, seed=seed, **how)
    say(choice, quiet)
    for line in words:
        say(line, quiet)
    normal = good_ones(learn) if learn else []
    if learn:
        enough(normal, str(good), "leave --good out to use a method that needs none")
    elif references := references_of(pictures, detector):
        detector.fit(references)
        words.append(f"References: {len(references)}, as listed in {pictures.root}; no threshold can be had from them.")
        say(words[-1], quiet)
    _check_rate(rate)
    plan = plan_of(detector, new, good, normal, rate=rate, min_area=min_area, maps=maps, seed=seed, explain=explain)
    with RunFolder(out, plan) as run:
        say(run.message, quiet or not run.message)
        kept = run.scratch / "model"
        if learn and kept.exists():
            detector = store.load(kept)
        elif learn:
            with shown_training(quiet, run.scratch / "training"):
                fit_calibrated(detector, normal, seed=seed, rate=rate, track=watch)
            if watch.unreadable:
                words.append(left_out(watch.unreadable))
                say(words[-1], quiet)
            store.save(detector, kept)
        if detector.state():
            words.append(detector.state())
        if learn and save_model:
            store.save(detector, save_model)
        return _judge(
            run, detector, fresh, rate, min_area, words=[choice, *words], quiet=quiet, seed=seed, explain=explain
        )


def fit(
    good: str, out: str, *, method: str | None = None, seed: int = 0, quiet: bool = False, **how: Any
) -> dict[str, Any]:
    """Learn from good pictures, calibrate on them and save the detector to `out`.

    A training that was stopped goes on where the same is asked for again: its checkpoints lie in `out`.training until
    the detector is saved. Of several processes (see docs/training.md) the first one speaks and saves.
    """
    quiet = quiet or rank() > 0
    watch = Watch(quiet)
    if rank() == 0:
        store.require_target(out)
    folder = open_folder(good)
    detector, choice = choose(method, True, good=good, seed=seed, **how)
    say(choice, quiet)
    say(folder.describe(), quiet)
    normal = good_ones(folder)
    enough(normal, good, "use `anomalens inspect` with a method that needs none")
    alike = _digest([__version__, detector.method, _plain(detector), seed, [[s.id, *_stamp(s)] for s in normal]])
    checkpoints = Path(f"{Path(out)}.training") / alike[:16]
    with shown_training(quiet, checkpoints):
        fit_calibrated(detector, normal, seed=seed, track=watch)
    if rank() == 0:
        store.save(detector, out)
        shutil.rmtree(checkpoints, ignore_errors=True)
        with suppress(OSError):  # not there, or it holds what another training has left
            checkpoints.parent.rmdir()
    calibration = detector.calibration
    assert calibration is not None
    words = [
        f"{detector.method} learned from {len(normal) - len(watch.unreadable)} good pictures and was saved to {out}."
    ]
    if watch.unreadable:
        words.append(left_out(watch.unreadable))
    words += [s for s in (detector.state(), calibration.promise()) if s]
    return {"words": "\n".join(words), "model": out, "method": detector.method, "good": calibration.count,
            "smallest_rate": calibration.smallest_rate, "unreadable": watch.unreadable}  # fmt: skip


def add(model: str, good: str, *, quiet: bool = False) -> dict[str, Any]:
    """Extend a saved detector by more good pictures without fitting again; the calibrated threshold stays."""
    watch = Watch(quiet)
    detector = store.load(model)
    extend = getattr(detector, "add", None)
    if extend is None:
        able = [n for n in registry.names() if hasattr(registry.class_of(n), "add")]
        raise WrongInput(
            f"{detector.method} cannot be extended, {' and '.join(able)} can; fit again with all good pictures."
        )
    folder = Folder(good)
    say(folder.describe(), quiet)
    normal = good_ones(folder)
    extend(watch(normal, "learning from more good pictures", len(normal)))
    store.save(detector, model)
    words = [f"{model} learned from {len(normal) - len(watch.unreadable)} more good pictures.", detector.state()]
    if watch.unreadable:
        words.append(left_out(watch.unreadable))
    return {"words": "\n".join(words), "model": model, "unreadable": watch.unreadable}


def predict(
    model: str,
    new: str,
    out: str,
    *,
    rate: float | None = None,
    min_area: int = 4,
    device: str = "auto",
    maps: bool = True,
    thing: str | None = None,
    quiet: bool = False,
    explain: Explain | None = None,
) -> dict[str, Any]:
    """Judge `new` with a saved detector and write the report to `out`. explain: as for `inspect`."""
    detector = load(model, device)
    if thing:
        rename(detector, thing)
    pictures = open_folder(new)
    fresh = pictures.samples()
    words = [new_in_words(pictures, fresh)]
    say(words[0], quiet)
    _check_rate(rate)
    plan = plan_of(detector, new, None, [], rate=rate, min_area=min_area, maps=maps, seed=0, explain=explain)
    with RunFolder(out, plan) as run:
        say(run.message, quiet or not run.message)
        return _judge(run, detector, fresh, rate, min_area, words=words, quiet=quiet, explain=explain)


def evaluate(
    model: str, data: str, out: str | None, *, rate: float | None = None, seed: int = 0, device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Figures of a saved detector on a labelled folder, with 95 % bootstrap intervals over pictures.

    Above EXACT_PIXELS the pixel figures come from a stream with bounded memory: each with the certified limit of its
    error, and without interval.
    """
    from .. import metrics

    watch = Watch(quiet)
    detector = load(model, device)
    folder = open_folder(data)
    test = [s for s in folder.test() if s.label is not None]
    if not test:
        raise WrongInput(
            f"{data} has no labelled pictures; evaluate needs good and bad ones, for instance good/ and bad/."
        )
    say(folder.describe(), quiet)
    by_id = {s.id: s for s in test}
    masked = any(s.mask is not None for s in test)
    scored: list[tuple[float, int]] = []
    categories: list[str] = []
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    kept = 0  # pixels in pairs
    stream: metrics.PixelAccumulator | None = None
    for prediction in detector.predict(watch(test, "judging labelled pictures", len(test))):
        sample = by_id[prediction.id]
        if math.isnan(prediction.score):
            watch.unreadable[prediction.id] = next((r.text for r in prediction.reasons), "the method gave no score")
            continue
        scored.append((prediction.score, int(bool(sample.label))))
        categories.append(prediction.category or sample.category)
        if not masked or prediction.map is None or (sample.label and sample.mask is None):
            continue
        pairs.append((prediction.map, sample.mask.read() if sample.mask is not None else None))
        kept += prediction.map.size
        if stream is None and kept > EXACT_PIXELS:
            stream = metrics.PixelAccumulator()
        if stream is not None:
            for values, mask in pairs:
                stream.update(values, mask)
            pairs.clear()
    if not scored:
        raise Unreadable(
            f"none of the {len(test)} labelled pictures could be read (first: {next(iter(watch.unreadable.values()))})"
        )
    scores, labels = np.array([s for s, _ in scored]), np.array([k for _, k in scored], bool)
    figures = {f"image {k}": v for k, v in metrics.image(scores, labels, interval=True, seed=seed).items()}
    if stream is not None:
        figures |= {f"pixel {k}": v for k, v in stream.compute().items()}
    elif pairs:
        maps, masks = zip(*pairs, strict=True)
        figures |= {f"pixel {k}": v for k, v in metrics.pixel(maps, masks, interval=True, seed=seed).items()}
    result: dict[str, Any] = {
        "method": detector.method, "model": model, "data": data, "pictures": len(labels), "anomalous": int(labels.sum()),
        "unreadable": watch.unreadable, "seed": seed, "figures": {name: _figure(m) for name, m in figures.items()},
    }  # fmt: skip
    if detector.calibration is not None:
        calibration = detector.calibration
        used = calibration.rate(rate)
        own = [calibration.own(category, used) for category in categories]
        rejected = np.array([c.verdict(c.p_value(s), used) == "reject" for c, s in zip(own, scores, strict=True)])
        result["at_threshold"] = {
            "false_alarm_rate": used,
            "good_rejected": int(rejected[~labels].sum()), "good": int((~labels).sum()),
            "anomalous_rejected": int(rejected[labels].sum()), "anomalous": int(labels.sum()),
        }  # fmt: skip
    if out:
        write_atomic(Path(out), json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _figure(measured: Any) -> dict[str, Any]:
    """One measured value as JSON: None where it is undefined, with the reason."""
    return {
        "value": _finite(measured.value), "interval": measured.interval, "floor": _finite(measured.floor),
        "bound": measured.bound, "reason": measured.reason,
    }  # fmt: skip


def figures_table(result: dict[str, Any]) -> str:
    """The figures of `evaluate` as text."""
    lines = [f"{result['method']} on {result['data']}: {result['pictures']} pictures, {result['anomalous']} anomalous"]
    for name, figure in result["figures"].items():
        if figure["value"] is None:
            lines.append(f"  {name:<18} undefined: {figure['reason']}")
            continue
        extra = (
            f"   95 % interval {figure['interval'][0]:.3f} to {figure['interval'][1]:.3f}" if figure["interval"] else ""
        )
        extra += f"   error at most {figure['bound']:.1g}" if figure["bound"] else ""
        lines.append(f"  {name:<18} {figure['value']:.3f}{extra}")
    if at := result.get("at_threshold"):
        lines.append(
            f"  at a false-alarm rate of {percent(at['false_alarm_rate'])}: {at['good_rejected']} of {at['good']} "
            f"good and {at['anomalous_rejected']} of {at['anomalous']} anomalous pictures are rejected"
        )
    return "\n".join(lines)


def demo(out: str, category: str = "cloth", seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Draw a category, inspect its test pictures with its good ones, evaluate the detector: all offline."""
    from ..datasets.procedural import Procedural

    root = Path(out)
    drawn = root / "pictures"
    if not (drawn / category).exists():
        say(f"drawing {category} into {drawn / category}", quiet)
        Procedural(category, seed=seed).write(drawn / category)
    good, new, report, model = (
        drawn / category / "train" / "good",
        drawn / category / "test",
        root / "report",
        root / "model",
    )
    summary = inspect(str(new), str(good), str(report), save_model=str(model), seed=seed, quiet=quiet)
    figures = evaluate(str(model), str(drawn / category), str(root / "figures.json"), seed=seed, quiet=quiet)
    summary["figures"] = figures["figures"]
    summary["words"] = "\n".join([figures_table(figures), "", summary["words"]])
    return summary


def choose(
    method: str | None, has_good: bool, *, new: str | None = None, good: str | None = None, tile: int | None = None,
    roi: str | None = None, **how: Any,
) -> tuple[Detector, str]:  # fmt: skip
    """The detector to use, wrapped for tiles and region of interest where asked for, and a sentence that says why.

    new, good: the folders; the method `auto` looks into them.
    """
    if method == "auto":
        name, why = recommend.auto(new, good, how.get("device", "auto"))
    elif method:
        name, why = (
            resolve("detectors", "detector", method),
            f"Method: {registry.card(method).title}.",
        )
    elif has_good:
        name = WITH_GOOD
        why = "Method: PatchCore (the default with good pictures: a memory of what their patches look like)."
    else:
        name = WITHOUT_GOOD
        why = (
            "Method: GRNR, because no good pictures were given: it compares each place of a picture with the rest of the "
            "same picture, so it suits even textures, not objects. Nothing can be promised without good pictures."
        )
    settings = settings_for(name, **how)
    if "object" in setting_types(registry.class_of(name)):
        settings.setdefault("object", called(new, good))
        if settings["object"]:
            why += f" Its sentences call the thing {settings['object']!r}; --object NAME chooses another name."
    made = create(name, **settings)
    if not has_good and made.needs_fit:
        if registry.card(name).family == "program":
            made.require_fit()  # which says which of the rules asks for good pictures
        ready = [n for n in registry.names() if registry.card(n).normals[0] == 0 and not create(n).needs_fit]
        raise WrongInput(f"{name} learns from good pictures; give --good GOOD, or use {' or '.join(ready)} without.")
    if tile:
        made = create("tiled", inner=made, tile=tile, overlap=min(64, tile // 4))
    if roi:
        if not Path(roi).exists():
            raise WrongInput(f"the region of interest {roi} does not exist; give the path of a mask picture.")
        made = create("within", inner=made, mask_file=roi)
    return made, why


def settings_for(
    name: str, *, backbone: str | None = None, limit_memory: str | None = None, seed: int = 0, device: str = "auto",
    thing: str | None = None, settings: Iterable[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Options of the command line as settings of one method; `settings` are KEY=VALUE texts."""
    hints = setting_types(registry.class_of(name))
    wanted: dict[str, Any] = {"seed": seed, "device": device}
    if limit_memory is not None:
        wanted["limit_memory"] = parse_bytes(limit_memory)
    chosen = {k: v for k, v in wanted.items() if k in hints}
    if backbone is not None:
        if "backbone" not in hints:
            raise WrongInput(f"{name} looks through no backbone; leave --backbone out, or set it with --set inner=...")
        chosen["backbone"] = backbone
    if thing:
        if "object" not in hints:
            raise WrongInput(f"{name} reads no sentences, so it needs no name of the thing; leave --object out.")
        chosen["object"] = thing
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise WrongInput(f"--set takes KEY=VALUE; got {text!r}.")
        key = key.strip().replace("-", "_")
        if key not in hints:
            raise unknown(f"setting of {name}", key, hints)
        try:
            chosen[key] = json.loads(value)
        except ValueError:
            words = typing.get_origin(hints[key]) is tuple  # names, separated by commas
            split = tuple(part.strip() for part in value.split(","))
            chosen[key] = tuple(json.loads(f"[{value}]")) if _numbers(value) else split if words else value
        if isinstance(chosen[key], list):
            chosen[key] = tuple(chosen[key])
    return chosen


def _numbers(text: str) -> bool:
    return "," in text and all(part.strip().lstrip("-").isdigit() for part in text.split(","))


def load(model: str, device: str) -> Detector:
    """A saved detector, on the device asked for."""
    detector = store.load(model)
    if device != "auto":
        for part in _parts(detector):
            if hasattr(part, "device"):
                part.device = device
    return detector


def rename(detector: Detector, thing: str) -> None:
    """Let a loaded detector call the thing by another name.

    Raises:
        WrongInput: it reads no names, or its threshold was calibrated with another one.
    """
    readers: list[Any] = [part for part in _parts(detector) if hasattr(part, "object")]
    if not readers:
        raise WrongInput(f"{detector.method} reads no sentences, so it needs no name of the thing; leave --object out.")
    for part in readers:
        if detector.calibration is not None and part.object != thing:
            called_now = repr(part.object) if part.object else "by its category"
            raise WrongInput(
                f"the threshold of this {detector.method} was calibrated with the thing called {called_now}, not {thing!r}; "
                f"leave --object out, or fit again with --object {thing!r}."
            )
        part.object = thing


def _innermost(detector: Detector) -> Detector:
    return list(_parts(detector))[-1]


def _parts(detector: Detector) -> Iterator[Detector]:
    yield detector
    for value in detector.settings().values():
        if isinstance(value, Detector):
            yield from _parts(value)


def references_of(pictures: Listed, detector: Detector) -> list[Sample]:
    """What a list brings to compare with, for a detector that can do without; folders bring nothing."""
    if isinstance(pictures, Folder) or detector.needs_fit or not detector.learns:
        return []
    return [*pictures.train(), *(pictures.defective() if getattr(detector, "abnormal", 0) else ())]


def apart(pictures: Listed, learn: Listed | None) -> tuple[list[Sample], list[str]]:
    """The pictures to judge, without those that are learnt from, and what was used for what in words."""
    fresh = pictures.samples()
    words = [new_in_words(pictures, fresh)]
    if learn is None:
        return fresh, words
    known = {p for s in good_ones(learn) if (p := _real(s))}
    rest = [s for s in fresh if _real(s) not in known]
    if not rest:
        raise WrongInput(
            f"every picture of {pictures.root} is also among the good ones of {learn.root}; a picture that was learnt from "
            "cannot be judged. Give a folder of new pictures, or `anomalens fit` to learn only."
        )
    words.append(f"Good pictures: {learn.describe()}")
    if len(rest) < len(fresh):
        words.append(f"{len(fresh) - len(rest)} of the new pictures are learnt from and therefore not judged.")
    return rest, words


def new_in_words(pictures: Listed, fresh: list[Sample]) -> str:
    """How many pictures there are to judge, and what their folders say of them (which judging does not use)."""
    kinds = Counter(s.defect or ("good" if s.label == 0 else "bad") for s in fresh if s.label is not None)
    said = (
        f" (named {', '.join(f'{k}: {n}' for k, n in sorted(kinds.items()))}; judging does not use that)"
        if kinds
        else ""
    )
    return f"New pictures: {len(fresh)} in {pictures.root}{said}."


def _real(sample: Sample) -> str | None:
    path = next((v.path for v in sample.views.values() if v.path), None)
    return str(Path(path).resolve()) if path else None


def good_ones(folder: Listed) -> list[Sample]:
    """What a folder offers to learn from."""
    return [s for s in folder.train() if s.label != 1]


def enough(normal: list[Sample], folder: str, otherwise: str) -> None:
    """Refuse too few good pictures with the number that would do."""
    if not normal:
        raise WrongInput(f"{folder} holds no good pictures; give a folder of pictures without defects.")
    if len(normal) == 1:
        raise WrongInput(
            f"{folder} holds a single good picture; a false-alarm rate needs at least 2 and 99 allow 1 %. Give more, or "
            f"{otherwise}."
        )


def plan_of(
    detector: Detector, new: str, good: str | None, normal: list[Sample], *, rate: float | None, min_area: int,
    maps: bool, seed: int, explain: Explain | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What identifies a run: the same plan on the same pictures gives the same results."""
    plan = {
        "method": detector.method,
        "settings": _plain(detector),
        "fitted": fingerprint_of(detector),
        "new": str(new),
        "good": None if good is None else str(good),
        "good_pictures": _digest([[s.id, *_stamp(s)] for s in normal]),
        "false_alarm_rate": rate,
        "min_area": min_area,
        "maps": maps,
        "seed": seed,
    }
    if explain and not explain.dry_run:
        plan["explain"] = explain.plan()
    return plan


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def fingerprint_of(detector: Detector) -> str | None:
    """sha256 over what a fitted detector has learnt; None before fit."""
    if not detector.fitted or not detector.learns:
        return None
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(store.pack(detector, "", arrays), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        digest.update(arrays[key].tobytes())
    return digest.hexdigest()


def _stamp(sample: Sample) -> list[int]:
    path = next((v.path for v in sample.views.values() if v.path), None)
    if path is None or not Path(path).exists():
        return []
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns]


def _plain(detector: Detector) -> dict[str, Any]:
    """Settings as JSON."""
    return {
        k: {"method": v.method, "settings": _plain(v)} if isinstance(v, Detector) else v
        for k, v in detector.settings().items()
    }


def left_out(unreadable: dict[str, str]) -> str:
    first = next(iter(unreadable.values()))
    return f"{len(unreadable)} unreadable among the good pictures, left out (first: {first})"


def _check_rate(rate: float | None) -> None:
    if rate is not None and not 0 < rate < 1:
        raise WrongInput(f"--false-alarm-rate lies between 0 and 1 (0.01 is 1 %); got {rate}.")


def _judge(
    run: RunFolder, detector: Detector, samples: list[Sample], rate: float | None, min_area: int, *, words: list[str],
    quiet: bool, seed: int = 0, explain: Explain | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Predict everything that is pending, judge it and finish the report."""
    calibration = detector.calibration
    limits = calibration.pixel_thresholds(calibration.rate(rate)) if calibration else None
    if limits and run.map_scale is None:
        run.map_scale = 2 * limits[1] if limits[1] > 0 else None
    by_id = {s.id: s for s in samples}
    watch = Watch(quiet)  # of its own: a good picture and a new one may share an id
    pending = list(run.pending(samples))
    started = time.perf_counter()
    for prediction in detector.predict(watch(pending, "judging new pictures", len(pending))):
        sample = by_id[prediction.id]
        judged = (
            calibration.judge(prediction, rate, min_area, sample.category)
            if calibration
            else with_own_regions(prediction, min_area)
        )
        view = telling_view(judged, sample)
        path = sample.views[view].path if view else _path(sample)
        run.add(judged, path=path, label=sample.label, view=view)
    for name, why in watch.unreadable.items():
        run.fail(name, why, path=_path(by_id[name]))
    scores: dict[str, float] = {}
    own: dict[str, Verdict] = {}
    for row in run.rows():
        if row["score"] is not None:
            scores[row["id"]] = row["score"]
            if row["verdict"]:
                own[row["id"]] = row["verdict"]
    seconds = time.perf_counter() - started
    if not scores:
        first = next(run.rows())["error"]
        raise Unreadable(f"none of the {len(samples)} new pictures could be judged (first: {first})")
    verdicts: dict[str, Verdict] = {}  # those that are known only now
    summary = describe_run(detector, calibration, rate, words, seed)
    summary["seconds"], summary["pictures_per_second"] = seconds, len(pending) / seconds if pending else None
    if calibration is None:
        limit, out = stands_out(list(scores.values()))
        verdicts = {name: "review" if flag else "pass" for name, flag in zip(scores, out, strict=True)}
        summary["review"] = limit
        if own:  # a method that decides by itself, such as one that answers in words
            by_rule = registry.card(_innermost(detector).method).family == "program"  # a person has said what is wrong
            for name, verdict in own.items():
                verdicts[name] = verdict if by_rule or verdict == "pass" else "review"
            summary["review"] = None
            summary["sentences"] = [
                "No good pictures were given, so no false-alarm rate is promised: a picture that breaks a rule is rejected."
                if by_rule
                else "No good pictures were given, so nothing is promised: pictures that the method itself calls anomalous "
                "are marked for review, none is rejected."
            ]
            found = sum(verdict != "pass" for verdict in verdicts.values())
            what = (
                f"break{'s' * (found == 1)} a rule" if by_rule else f"{'is' if found == 1 else 'are'} called anomalous"
            )
            summary["headline"] = f"{found:,} of {len(verdicts):,} pictures {what}"
    judge: Any = _innermost(detector)
    if hasattr(judge, "ruleset"):
        told = {rule.id: rule.text for rule in judge.ruleset.rules}
        summary["sentences"] = [rules_in_words(told, run.rows()), *judge.doubts(), *summary["sentences"]]
        if judge.unfit():
            summary["headline"] = "The rules do not fit: most good pictures break them"
    reasons = None
    if explain:
        final = {**own, **verdicts}
        flagged = (row for row in run.rows() if final.get(row["id"], "pass") != "pass")
        reasons, said = second_stage(explain, flagged, by_id, run.path / "answers", quiet)
        summary["sentences"] = [*summary["sentences"], said]
    page = run.finish(summary, verdicts=verdicts, reasons=reasons, pictures=drawn(by_id))
    return conclusion(run, page, summary)


def drawn(samples: Mapping[str, Sample]) -> Callable[[str], np.ndarray | None]:
    """For the page: a picture of a sample that is no picture, such as a point cloud; None of any other."""

    def picture(id: str) -> np.ndarray | None:
        sample = samples.get(id)
        if sample is None or "image" in sample.views or not {"points", "series"} & set(sample.views):
            return None
        try:
            return on_its_grid(sample)
        except WrongInput:
            return None

    return picture


def rules_in_words(told: Mapping[str, str], rows: Iterable[dict[str, Any]]) -> str:
    """How many pictures keep the rules, and how many break which. told: what each rule says, where it is known."""
    total, kept, broken = 0, 0, Counter[str]()
    for row in rows:
        if row["score"] is None:
            continue
        total += 1
        kept += not row["reasons"]
        broken.update({reason["rule"] for reason in row["reasons"] if reason["rule"]})
    rules = f"all {len(told)} rules" if len(told) > 1 else "the rule" if told else "the rules"
    words = f"{kept} of {total} picture{'s' * (total != 1)} keep{'s' * (kept == 1)} {rules}"
    if broken:
        said = {rule: f" ({textwrap.shorten(text, 60, placeholder=' ...')})" for rule, text in told.items() if text}
        words += ". Broken: " + ", ".join(
            f"{rule}{said.get(rule, '')} in {n}" for rule, n in sorted(broken.items(), key=lambda r: (-r[1], r[0]))
        )
    return words + "."


def with_own_regions(prediction: Prediction, min_area: int) -> Prediction:
    """Regions without good pictures: places far above the rest of the same map. They promise nothing."""
    if prediction.map is None:
        return prediction
    low, high = (stands_out(prediction.map.ravel(), factor)[0] for factor in OWN_REGIONS)
    return replace(prediction, regions=find_regions(prediction.map, low, high, min_area))


def describe_run(
    detector: Detector, calibration: Calibration | None, rate: float | None, words: list[str], seed: int
) -> Summary:
    """The facts of the report that do not depend on the new pictures."""
    innermost = _innermost(detector)
    card = registry.card(innermost.method)
    chain = " in ".join(registry.card(p.method).title for p in reversed(list(_parts(detector))))
    backbone = str(getattr(innermost, "backbone", ""))
    summary: Summary = {"method": chain, "differs": card.differs, "data": " ".join(words), "seed": seed}
    if backbone:
        summary["backbone"] = backbone
        summary["licence"] = backbone_card(backbone.partition(":")[0]).licence
    if calibration is None:
        summary["sentences"] = [
            "No good pictures were given, so nothing is promised: pictures whose score stands out from the others are "
            "marked for review, none is rejected."
        ]
        return summary
    used = calibration.rate(rate)
    limits = calibration.pixel_thresholds(used)
    summary["sentences"] = calibration.sentences(rate)
    summary["good_scores"] = [float(s) for s in calibration.scores]
    if not any(calibration.own(name, used) is part for name, part in calibration.parts.items()):  # one line for all
        summary["reject"] = _finite(calibration.threshold(used))
        summary["review"] = _finite(calibration.threshold(review_rate(used)))
    summary["pixel_threshold"] = _finite(limits[1]) if limits else None
    return summary


def conclusion(run: RunFolder, page: Path, summary: Summary) -> dict[str, Any]:
    """What the command prints."""
    facts = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    counts = facts["counts"]
    total = sum(counts.values())
    parts = [f"{counts[k]} {word}" for k, word in
             (("reject", "rejected"), ("review", "to review"), ("pass", "passed"), ("unreadable", "unreadable"))
             if counts[k]]  # fmt: skip
    speed = facts["pictures_per_second"]
    words = [f"{total} picture{'s' * (total != 1)}: {', '.join(parts)}" + (f" ({speed:.1f} pictures/s)." if speed else "."),
             *summary["sentences"], f"Report: {page}"]  # fmt: skip
    return {"words": "\n".join(words), "report": str(page), "counts": counts, "sentences": list(summary["sentences"]),
            "method": facts["plan"]["method"], "false_alarm_rate": facts["plan"]["false_alarm_rate"],
            "reject_above": summary.get("reject"), "review_above": summary.get("review"),
            "pictures_per_second": speed}  # fmt: skip


def telling_view(prediction: Prediction, sample: Sample) -> str:
    """Of several views of a sample the one that shows most of what was found, if it has a file; else ""."""
    shares = next((r.shares for r in prediction.reasons if r.shares), {})
    there = [name for name in shares if name in sample.views and sample.views[name].path]
    return max(there, key=lambda name: shares[name], default="")


def _path(sample: Sample) -> str | None:
    return next((v.path for v in sample.views.values() if v.path), None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
