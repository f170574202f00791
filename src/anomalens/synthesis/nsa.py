"""Natural synthetic anomalies: a patch of a normal picture, blended in without a seam by Poisson's equation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import NotMade
from ..images import resize, to_float
from ..types import MakerCard, Sample
from ._maker import Change, Draft, Maker, box_at, pictures_of
from ._places import elsewhere, require_noticed
from ._poisson import seamless
from ._shapes import blob

CARD = MakerCard(
    title="NSA",
    summary="a patch of this or another normal picture, resized and blended in seamlessly",
    source="NSA, Schlueter et al. 2022, https://arxiv.org/abs/2109.15222; blending: Perez et al. 2003, "
    "https://doi.org/10.1145/882262.882269",
    severity="opacity of the blended change",
    levels=("structural",),
    needs="",
    extras=(),
    differs="the patch has a wavy outline of the size asked for (paper: a rectangle with sides from a Gamma distribution "
    "that is cut to the object); the mask is binary (paper: also graded labels)",
    limits="a patch of an even texture differs little from what it covers: such draws are repeated",
)

SHRUNK, GROWN = 0.7, 1.3  # the patch is resized by a factor in this range


@dataclass
class NSA(Maker):
    """others: normal samples that patches come from; () takes them from the picture itself.

    mixed: keep the edges of the picture where they are stronger than those of the patch.
    The other settings are those of every maker.
    """

    size: tuple[float, float] = (0.15, 0.4)
    others: tuple[Sample, ...] = ()
    mixed: bool = False

    def draw(self, draft: Draft) -> Change:
        rng = draft.rng
        # One pixel around the patch stays as it is: its border is what the patch is blended into.
        cover = np.pad(blob(min(draft.length, min(draft.shape) - 2), rng), 1) > 0.5
        box = draft.place(*cover.shape)
        factor = math.exp(rng.uniform(math.log(SHRUNK), math.log(GROWN)))
        height, width = (min(max(2, round(n / factor)), have) for n, have in zip(cover.shape, draft.shape, strict=True))
        donor = self.others[rng.integers(len(self.others))] if self.others else None
        if donor is None:
            corner = elsewhere(box_at(box[0].start, box[1].start, height, width), draft.shape, rng)
            pictures = draft.pictures
        else:
            pictures = donor_pictures(donor, draft)
            shape = next(iter(pictures.values())).shape
            height, width = min(height, shape[0]), min(width, shape[1])
            top, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
            corner = box_at(top, left, height, width)
        under = draft.cut(box)
        blended = {}
        for name, part in under.items():
            patch = to_float(resize(pictures[name][corner], cover.shape))
            blended[name] = np.clip(seamless(part, patch, cover, self.mixed), 0, 1)
        require_noticed(under, blended, cover)
        views = {name: part + draft.severity * (blended[name] - part) for name, part in under.items()}
        notes = {"from": [corner[0].start, corner[1].start], "factor": round(factor, 3)}
        return Change(box, views, grain=4, notes=notes | ({"donor": donor.id} if donor else {}))


def donor_pictures(donor: Sample, draft: Draft) -> dict[str, np.ndarray]:
    """The pictures of another sample, by the views of this one.

    Raises:
        NotMade: it lacks a view.
    """
    found = pictures_of(donor)
    if missing := draft.pictures.keys() - found.keys():
        raise NotMade(f"sample {donor.id}, from which a patch was to come, lacks the views {tuple(sorted(missing))}.")
    return found


MAKER = NSA
