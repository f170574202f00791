"""How good verdicts are: of methods that answer yes or no, give a score only sometimes, or give no answer at all.

figures = compare(results, labels)                    # anomalous is the positive class, no answer counts as wrong
figures = compare(results, labels, compat="official") # as the code of Customizable-VLM counts, to repeat its figures
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .. import metrics
from ..errors import WrongInput
from ..regions import label

POOLED = ""  # the key of all categories together
PIXELS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class Verdict(Protocol):
    """What is compared: such as `detectors.customizable_vlm.Result`. None where there is no answer."""

    @property
    def anomalous(self) -> bool | None: ...
    @property
    def score(self) -> float | None: ...


@dataclass(frozen=True)
class Figures:
    """Figures of one category, or of all. Shares in [0, 1], higher is better; NaN where undefined.

    count: samples. coverage: share with an answer. accuracy: right answers of all samples, no answer is wrong;
    accuracy_answered: of those answered. balanced_accuracy, precision, recall, f1: of those answered. auroc, ap: of the
    scores of those answered.
    """

    count: int
    coverage: float
    accuracy: float
    accuracy_answered: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    auroc: float
    ap: float


def compare(
    verdicts: Iterable[Verdict],
    labels: Sequence[int],
    categories: Sequence[str] | None = None,
    *,
    compat: Literal["", "official"] = "",
) -> dict[str, Figures]:
    """Figures by category, and under POOLED of all samples together.

    Args:
        labels: 1 anomalous, 0 normal. categories: of each sample.
        compat: "official" takes normal as the positive class, the bare verdict as the score, and drops what has no
            answer: the mean over samples, not over categories.

    Raises:
        WrongInput: numbers of verdicts, labels and categories differ.
    """
    verdicts, names = list(verdicts), list(categories or [POOLED] * len(labels))
    if not len(verdicts) == len(labels) == len(names):
        raise WrongInput(f"got {len(verdicts)} verdicts, {len(labels)} labels and {len(names)} categories; one each.")
    table = [(v.anomalous, v.score, bool(y)) for v, y in zip(verdicts, labels, strict=True)]
    if compat == "official":
        table = [(not a, float(not a), not y) for a, _, y in table if a is not None]
        names = [n for n, v in zip(names, verdicts, strict=True) if v.anomalous is not None]
    found = {POOLED: _figures(table)}
    for name in dict.fromkeys(names):
        if name != POOLED:
            found[name] = _figures([row for row, own in zip(table, names, strict=True) if own == name])
    return found


def _figures(table: Sequence[tuple[bool | None, float | None, bool]]) -> Figures:
    answered = [(bool(a), float(a if s is None else s), y) for a, s, y in table if a is not None]
    said, scores, truth = (np.array(column) for column in zip(*answered, strict=True)) if answered else ([], [], [])
    said, truth = np.asarray(said, bool), np.asarray(truth, bool)
    hits, right = int((said & truth).sum()), int((said == truth).sum())
    recall, rejected = _share(hits, truth.sum()), _share((~said & ~truth).sum(), (~truth).sum())
    precision = _share(hits, said.sum())
    ranking = metrics.image(scores, truth, ("auroc", "ap")) if answered else {}
    return Figures(
        count=len(table),
        coverage=_share(len(answered), len(table)),
        accuracy=_share(right, len(table)),
        accuracy_answered=_share(right, len(answered)),
        balanced_accuracy=(recall + rejected) / 2,
        precision=precision,
        recall=recall,
        f1=_share(2 * hits, said.sum() + truth.sum()),
        auroc=ranking["auroc"].value if ranking else math.nan,
        ap=ranking["ap"].value if ranking else math.nan,
    )


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else math.nan


def boxes_found(boxes: Sequence[tuple[int, int, int, int]], mask: np.ndarray, least: float = 0.5) -> tuple[int, int]:
    """(defects that a box meets with an intersection over union of at least `least`, defects in the mask).

    boxes: (x0, y0, x1, y1) in pixels. mask: (H, W) bool; a defect is a connected component, by the box around it. Each
    box meets one defect at most, the best pairs first.
    """
    parts, count = label(np.asarray(mask, bool))
    truth = []
    for k in range(1, count + 1):
        y, x = np.nonzero(parts == k)
        truth.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    pairs = sorted(
        ((_iou(box, other), i, j) for i, box in enumerate(boxes) for j, other in enumerate(truth)), reverse=True
    )
    used: set[int] = set()
    met: set[int] = set()
    for overlap, i, j in pairs:
        if overlap >= least and i not in used and j not in met:
            used.add(i)
            met.add(j)
    return len(met), count


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def official_items(root: str | Path, *, clean: bool = False) -> list[dict[str, Any]]:
    """The items that the code of Customizable-VLM judges, made anew from a folder of MVTec AD.

    Each has object_type, defect_img_path (what is judged), good_img_path, label (1 is normal) and defect_type; paths are
    relative to `root`. The reference of every item of a category is its first good *test* picture, which is also an
    item itself: figures on this list compare 15 of 1725 pictures with themselves.

    clean: take the first picture of train/good as the reference instead, so that nothing is compared with itself.

    Raises:
        WrongInput: there is no <category>/test/good/000.png, or a category has no picture in train/good.
    """
    root = Path(root)
    items: list[dict[str, Any]] = []
    for test in sorted(p for p in root.glob("*/test") if (p / "good" / "000.png").exists()):
        good = test.parent / "train" / "good" if clean else test / "good"
        first = min((p for p in good.glob("*") if p.suffix.lower() in PIXELS), default=None)
        if first is None:
            raise WrongInput(f"{good} holds no picture to compare with; the clean list needs MVTec AD's training part.")
        reference = first.relative_to(root).as_posix()
        for path in sorted(p for p in test.glob("*/*") if p.suffix.lower() in PIXELS):
            kind = path.parent.name
            items.append({
                "object_type": test.parent.name,
                "defect_img_path": path.relative_to(root).as_posix(),
                "good_img_path": reference,
                "label": int(kind == "good"),
                "defect_type": kind,
            })  # fmt: skip
    if not items:
        raise WrongInput(f"{root} holds no <category>/test/good/000.png; give the folder of MVTec AD.")
    return items
