"""Would it be found? Defects of graded size and contrast drawn on good pictures, judged at the detector's own threshold.

    from anomalens.bench import stress
    trials = list(stress.run(detector, good, makers=("scratch", "stain")))
    print(stress.summary(trials)["makers"]["scratch"]["smallest_size"])

The good pictures must be ones that the detector has not learnt from. A picture that is rejected as it is says nothing
about defects drawn on it, so it is counted as a false alarm and left out.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from .. import synthesis
from ..detector import Detector
from ..errors import NotMade, WrongInput
from ..thresholds import SLACK, Calibration, percent
from ..types import Prediction, Sample
from . import pod

MAKERS = ("scratch", "stain", "perlin")  # what is drawn unless somebody says otherwise
SIZES = (0.03, 0.06, 0.12, 0.24, 0.48)  # longest side, as a share of the picture's short side
SEVERITIES = (0.1, 0.2, 0.4, 0.7, 1.0)
PICTURES = 12  # each cell of size and severity is drawn on so many
WANTED = 0.9
NEAR = 0.02  # of the short side: a highest place so close to the defect points at it
GOOD = "good "  # the keys of trials on pictures as they are begin so
SPREAD = 3  # contrasts at which the smallest size is said: quartiles of those drawn
LOWER, SURE = 0.95, 3.0  # good pictures look learnt from: share of comparisons, and standard errors from one half


@dataclass(frozen=True)
class Trial:
    """One picture judged.

    maker: what was drawn, "" for the picture as it is. wanted_size, severity: what it was asked for. repeat: which of the
        pictures of a cell. size: longest side of what was drawn, pixels. contrast: mean absolute difference inside the
        mask, grey levels of 0 to 255. score: None without an answer. found: rejected at the threshold. pointed: whether the
        highest place of the map is on the defect or next to it; None without a map. error: why there is no result.
    """

    key: str
    picture: str
    maker: str = ""
    wanted_size: float = 0.0
    severity: float = 0.0
    repeat: int = 0
    size: float = 0.0
    contrast: float = 0.0
    score: float | None = None
    p_value: float | None = None
    found: bool = False
    pointed: bool | None = None
    error: str = ""


def run(
    detector: Detector,
    samples: Sequence[Sample],
    *,
    makers: Sequence[str] = MAKERS,
    sizes: Sequence[float] = SIZES,
    severities: Sequence[float] = SEVERITIES,
    pictures: int = PICTURES,
    where: str = "",
    rate: float | None = None,
    seed: int = 0,
    known: Iterable[Trial] = (),
) -> Iterator[Trial]:
    """Judge every picture as it is, then with every defect; one trial at a time, in an order that depends on nothing else.

    samples: good pictures; each is judged as it is, and each cell is drawn on `pictures` of those that pass, taken in turn.
    where: "bright", "dark" or a mask picture: defects are drawn only there, see `Maker.where`.
    rate: the false-alarm rate whose threshold is used [default: the calibrated one]. known: trials of an earlier run with
        the same settings, which are not repeated (and not yielded).

    Raises:
        WrongInput: no threshold, or none at this rate; no picture, none that passes; a size or severity outside 0..1.
        UnknownName: no such maker.
    """
    calibration = detector.calibration
    if calibration is None:
        raise WrongInput(
            f"{detector.method} has no threshold, so nothing can be found or missed; fit it with good pictures "
            "(`anomalens fit`, or fit_calibrated)."
        )
    check(samples, makers, sizes, severities, pictures)
    makers, sizes, severities = [*dict.fromkeys(makers)], [*dict.fromkeys(sizes)], [*dict.fromkeys(severities)]
    used = calibration.rate(rate)
    if used < calibration.smallest_rate - SLACK:
        raise WrongInput(
            f"the {calibration.count} good pictures that {detector.method} was calibrated on cannot promise a false-alarm "
            f"rate of {percent(used)}, so nothing would be found; ask for {percent(calibration.smallest_rate)} or more."
        )
    done = {trial.key: trial for trial in known}

    def judged(samples: Iterable[tuple[str, Sample]]) -> Iterator[tuple[str, Prediction, bool]]:
        """(key, prediction, rejected) of samples that are named by their keys while they are judged."""
        keys: list[tuple[str, str]] = []

        def renamed() -> Iterator[Sample]:
            for key, sample in samples:
                keys.append((key, sample.category))
                yield replace(sample, id=key)

        for place, prediction in enumerate(detector.predict(renamed())):
            key, category = keys[place]
            if math.isnan(prediction.score):  # no answer finds nothing
                yield key, prediction, False
                continue
            p_value = calibration.own(prediction.category or category, used).p_value(prediction.score)
            verdict = calibration.verdict(p_value, used)
            yield key, replace(prediction, p_value=p_value), verdict == "reject"

    for key, prediction, rejected in judged((as_it_is(s), s) for s in samples if as_it_is(s) not in done):
        picture, score = key.removeprefix(GOOD), _known(prediction.score)
        trial = Trial(key, picture, score=score, p_value=prediction.p_value, found=rejected)
        done[key] = trial
        yield trial
    passed = [sample for sample in samples if not done[as_it_is(sample)].found]
    if not passed:
        raise WrongInput(
            f"all {len(samples)} good pictures are rejected as they are, so nothing drawn on them would tell anything; "
            "give pictures like those that the detector has learnt from."
        )

    begun: deque[tuple[Trial, Sample | None]] = deque()  # in order; without a sample where none could be drawn

    def defective() -> Iterator[tuple[str, Sample]]:
        for maker, (turn, size), severity, repeat in product(makers, enumerate(sizes), severities, range(pictures)):
            sample = passed[(turn * pictures + repeat) % len(passed)]
            key = f"{maker} {size:g} {severity:g} {repeat} {sample.id}"
            if key in done:
                continue
            trial = Trial(key, sample.id, maker, size, severity, repeat)
            try:
                made = draw(trial, sample, seed, where)
            except NotMade as error:
                begun.append((replace(trial, error=str(error)), None))
                continue
            begun.append((trial, made))
            yield key, made

    for _, prediction, rejected in judged(defective()):
        trial, made = begun.popleft()
        while made is None:
            yield trial
            trial, made = begun.popleft()
        measured = (made.made or {})["measured"]
        yield replace(
            trial,
            size=float(measured["longest"]),
            contrast=float(measured["contrast"]),
            score=_known(prediction.score),
            p_value=prediction.p_value,
            found=rejected,
            pointed=_points(prediction, made),
        )
    yield from (trial for trial, _ in begun)


def draw(trial: Trial, sample: Sample, seed: int, where: str = "") -> Sample:
    """The picture of a trial. One defect is drawn with every severity: the random numbers do not depend on it.

    Raises:
        NotMade: nothing of it would be seen.
    """
    maker = synthesis.create(
        trial.maker,
        size=(trial.wanted_size, trial.wanted_size),
        severity=(trial.severity, trial.severity),
        where=where,
    )
    words = f"{trial.maker} {trial.wanted_size:g} {trial.repeat} {trial.picture}"
    return maker(sample, np.random.default_rng([seed, zlib.crc32(words.encode())]))


def as_it_is(sample: Sample) -> str:
    """Key of the trial on the picture itself."""
    return GOOD + sample.id


def looks_learnt(trials: Sequence[Trial], samples: Iterable[Sample], calibration: Calibration) -> bool:
    """Whether the good pictures score so much lower than unseen ones that the detector has probably learnt from them.

    Each is compared with the scores of good pictures of its category that the detector had not seen when it was
    calibrated: nearly all of these are higher, more than chance explains (Mann and Whitney 1947,
    https://doi.org/10.1214/aoms/1177730491). A detector that learns nothing, or little of a picture, shows nothing.
    """
    if calibration.how == "unseen":
        return False
    category = {sample.id: sample.category for sample in samples}
    higher = pairs = variance = 0.0
    for name, part in (calibration.parts or {"": calibration}).items():
        scores = [
            t.score for t in trials
            if not t.maker and t.score is not None and (not calibration.parts or category[t.picture] == name)
        ]  # fmt: skip
        higher += sum(float((part.scores > score).sum()) for score in scores)
        pairs += len(scores) * part.count
        variance += len(scores) * part.count * (len(scores) + part.count + 1) / 12
    return pairs > 0 and higher >= LOWER * pairs and higher - pairs / 2 > SURE * math.sqrt(variance)


def summary(trials: Iterable[Trial], *, wanted: float = WANTED, seed: int = 0) -> dict[str, Any]:
    """What the trials say, JSON-able: false alarms, and for every maker its cells, its curve and its limits.

    Sizes are pixels, contrasts grey levels. `smallest_size` of a maker is a list over three contrasts (the quartiles of
    those drawn), `lowest_contrast` one over the sizes drawn; `value` None means that none tried is found with probability
    `wanted`.
    """
    trials = list(trials)
    clean = [t for t in trials if not t.maker and not t.error]
    alarms = sum(t.found for t in clean)
    return {
        "wanted": wanted,
        "good": {"pictures": len(clean), "rejected": alarms, "interval": pod.wilson(alarms, len(clean))},
        "makers": {
            name: _of_maker([t for t in trials if t.maker == name], wanted, seed)
            for name in dict.fromkeys(t.maker for t in trials if t.maker)
        },
    }


def _of_maker(trials: Sequence[Trial], wanted: float, seed: int) -> dict[str, Any]:
    used = [t for t in trials if not t.error and t.size > 0 and t.contrast > 0]
    lost = [t.error or "nothing visible was drawn" for t in trials if t not in used]
    out: dict[str, Any] = {
        "trials": len(used), "found": sum(t.found for t in used), "not_drawn": len(lost),
        "why_not_drawn": lost[0] if lost else "",
    }  # fmt: skip
    if not used:
        return out
    pointing = [t.pointed for t in used if t.found and t.pointed is not None]
    out["pointed"] = sum(pointing) / len(pointing) if pointing else None
    out["cells"] = [_cell(size, severity, group) for (size, severity), group in _cells(used).items()]
    curve = pod.fit(
        [t.size for t in used],
        [t.contrast for t in used],
        [t.found for t in used],
        [t.picture for t in used],
        seed=seed,
    )
    contrasts = np.unique(np.quantile([t.contrast for t in used], np.linspace(0, 1, SPREAD + 2)[1:-1]))
    wanted_sizes = sorted({t.wanted_size for t in used})
    sizes = [float(np.mean([t.size for t in used if t.wanted_size == asked])) for asked in wanted_sizes]
    out["curve"] = {
        "intercept": float(curve.coefficients[0]), "ln_size": float(curve.coefficients[1]),
        "ln_contrast": float(curve.coefficients[2]), "sizes": curve.sizes, "contrasts": curve.contrasts,
    }  # fmt: skip
    out["smallest_size"] = [{"contrast": float(c), **asdict(curve.smallest_size(c, wanted))} for c in contrasts]
    out["lowest_contrast"] = [{"size": s, **asdict(curve.lowest_contrast(s, wanted))} for s in sizes]
    grid = np.geomspace(*curve.sizes, 25) if curve.sizes[0] < curve.sizes[1] else np.array(curve.sizes[:1])
    out["lines"] = [
        {
            "contrast": float(c),
            "points": [(float(s), curve.probability(s, c), *curve.band(s, c)) for s in grid],
        }
        for c in contrasts
    ]
    return out


def _cells(trials: Sequence[Trial]) -> Mapping[tuple[float, float], list[Trial]]:
    cells: dict[tuple[float, float], list[Trial]] = {}
    for trial in trials:
        cells.setdefault((trial.wanted_size, trial.severity), []).append(trial)
    return cells


def _cell(size: float, severity: float, trials: Sequence[Trial]) -> dict[str, Any]:
    found = sum(t.found for t in trials)
    return {
        "wanted_size": size, "severity": severity, "trials": len(trials), "found": found,
        "interval": pod.wilson(found, len(trials)),
        "size": float(np.mean([t.size for t in trials])), "contrast": float(np.mean([t.contrast for t in trials])),
    }  # fmt: skip


def check(
    samples: Sequence[Sample], makers: Sequence[str], sizes: Sequence[float], severities: Sequence[float], pictures: int
) -> None:
    """Refuse settings that cannot be run, before anything is judged."""
    if not samples:
        raise WrongInput(
            "there is no good picture to draw on; give a folder of good pictures that were not learnt from."
        )
    for name in makers:
        synthesis.card(name)
    if not makers or not sizes or not severities or pictures < 1:
        raise WrongInput(
            "a stress test needs at least one maker, one size, one severity and one picture for each cell."
        )
    for words, values in (("size", sizes), ("severity", severities)):
        if wrong := [v for v in values if not 0 < v <= 1]:
            raise WrongInput(f"a {words} lies above 0 and is at most 1 (a share of the picture's short side, or of the "
                             f"strongest change); got {wrong[0]:g}.")  # fmt: skip


def _known(score: float) -> float | None:
    """As JSON can hold it: None for a detector that gave no answer."""
    return None if math.isnan(score) else score


def _points(prediction: Prediction, made: Sample) -> bool | None:
    """Whether the highest place of the map lies on the defect, or at most NEAR of the picture's short side from it."""
    if prediction.map is None or made.mask is None:
        return None
    mask = made.mask.read() == 1
    y, x = np.unravel_index(int(np.argmax(prediction.map)), prediction.map.shape)
    reach = max(1, round(NEAR * min(mask.shape)))
    return bool(mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].any())
