"""What CUT does with pictures, in numpy: to a square and back, where something changed, and whether it may be used.

Pictures are (H, W, 3) uint8. A gain or a share is without unit; higher is said where it is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import NotMade, WrongInput
from ..parts.grids import blur_matrix
from ..regions import label, otsu
from ._maker import grow
from ._shapes import ellipse

IGNORED = 255  # in a mask, where nobody knows; 1 is anomalous
BLUR = 2.0  # pixels, before pictures are compared
STRONGEST = 0.995  # the quantile of the change that counts as 1
FAINTEST = 0.05  # of full range: less change at that quantile does not count as 1
LEAST, MOST = 0.001, 0.3  # share of the picture that a pseudo mask covers
SPECK = 20  # pixels; smaller components are dropped
CHANGED = 0.2  # of the normalised change, above which a pixel counts as changed
CHANGED_SHARE = (0.002, 0.4)
SIMILAR = 0.8  # least SSIM outside of the mask
MARGIN = 1 / 32  # of the picture, by which the mask is grown before looking outside of it

Fit = Literal["pad", "crop", "squeeze"]


@dataclass(frozen=True)
class Square:
    """How a picture of height x width pixels lies in a square of `size` pixels.

    pad: the whole picture in the middle, its edge pixels repeated. crop: the square in its middle. squeeze: the whole
    picture, the ratio of its sides lost.
    """

    height: int
    width: int
    size: int
    fit: Fit

    @property
    def source(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that are in the square."""
        side = min(self.height, self.width) if self.fit == "crop" else max(self.height, self.width)
        height, width = min(side, self.height), min(side, self.width)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        return slice(top, top + height), slice(left, left + width)

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the square that show the picture."""
        if self.fit != "pad":
            return slice(0, self.size), slice(0, self.size)
        longest = max(self.height, self.width)
        height, width = (max(1, round(n * self.size / longest)) for n in (self.height, self.width))
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return slice(top, top + height), slice(left, left + width)

    @property
    def valid(self) -> np.ndarray:
        """(size, size) bool, True where the square shows the picture."""
        mask = np.zeros((self.size, self.size), bool)
        mask[self.inside] = True
        return mask

    def put(self, plane: np.ndarray, kernel: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
        """(H, W, 3) uint8 -> (size, size, 3); (H, W) bool -> (size, size), False in the padding."""
        rows, columns = self.inside
        if plane.dtype == bool:
            square = np.zeros((self.size, self.size), bool)
            square[self.inside] = _resized(plane[self.source], self.inside, Image.Resampling.NEAREST)
            return square
        part = _resized(plane[self.source], self.inside, kernel)
        around = [(s.start, self.size - s.stop) for s in (rows, columns)]
        return np.pad(part, [*around, (0, 0)], mode="edge")

    def back(self, square: np.ndarray, under: np.ndarray) -> np.ndarray:
        """What a square (size, size[, 3]) shows, at its place in a copy of `under` (H, W[, 3])."""
        out = under.copy()
        kernel = Image.Resampling.BICUBIC if square.ndim == 3 else Image.Resampling.NEAREST
        if square.dtype == np.float32:
            kernel = Image.Resampling.BILINEAR
        out[self.source] = _resized(square[self.inside], self.source, kernel)
        return out


def _resized(plane: np.ndarray, box: tuple[slice, slice], kernel: Image.Resampling) -> np.ndarray:
    height, width = (s.stop - s.start for s in box)
    return np.array(Image.fromarray(plane).resize((width, height), kernel))


def placed_ellipse(
    shape: tuple[int, ...], length: int, allowed: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """(H, W) float32 in [0, 1]: an ellipse of `length` pixels, its centre where a defect may be, cut to where it may be.

    Raises:
        NotMade: no place has room for it.
    """
    cover = ellipse(min(max(8, length), *shape), rng)
    height, width = cover.shape
    corners = np.ones((shape[0] - height + 1, shape[1] - width + 1), bool)
    if allowed is not None:
        corners = allowed[height // 2 :, width // 2 :][: corners.shape[0], : corners.shape[1]]
    places = np.flatnonzero(corners)
    if not len(places):
        raise NotMade(f"no place where a defect may be has room for {height} x {width} pixels.")
    top, left = divmod(int(places[rng.integers(len(places))]), corners.shape[1])
    whole = np.zeros(shape, np.float32)
    whole[top : top + height, left : left + width] = cover
    return whole if allowed is None else whole * allowed


# --- where it changed -------------------------------------------------------------------------------------------------


def blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W[, C]) -> float32, Gaussian blur."""
    down, across = (blur_matrix(n, sigma).astype(np.float32) for n in plane.shape[:2])
    return np.einsum("ab,bc...->ac...", down, np.einsum("ab,cb...->ca...", across, plane.astype(np.float32)))


def change(made: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: mean over channels of the blurred difference, 1 at its 99.5 % quantile.

    A picture that differs nowhere by more than FAINTEST of the full range stays below 1.
    """
    away = np.abs(blurred(made, BLUR) - blurred(source, BLUR)).mean(axis=2) / 255
    return np.clip(away / max(float(np.quantile(away, STRONGEST)), FAINTEST), 0, 1)


@dataclass(frozen=True)
class PseudoMask:
    """soft: (H, W) float32 in [0, 1], how surely a pixel is anomalous. mask: (H, W) uint8, 1 anomalous, 255 ignored."""

    soft: np.ndarray
    mask: np.ndarray


def pseudo_mask(
    attention: np.ndarray, made: np.ndarray, source: np.ndarray, allowed: np.ndarray | None = None
) -> PseudoMask:
    """Where the word was looked at and the picture changed: p = sqrt(attention x change), split by Otsu's threshold.

    attention: (s, s), any unit. allowed: (H, W) bool, where a defect may be. Between half of the threshold and the
    threshold, and where only specks are above it, pixels are ignored. At least 0.1 % and at most 30 % are anomalous.
    """
    size = made.shape[:2]
    looked = np.asarray(
        Image.fromarray(attention.astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC), np.float32
    )
    looked = (looked - looked.min()) / max(float(looked.max() - looked.min()), 1e-12)
    soft = np.sqrt(looked * change(made, source))
    if allowed is not None:
        soft = soft * allowed
    top = float(soft.max())
    if top == 0:
        return PseudoMask(soft, np.zeros(size, np.uint8))
    threshold = (otsu(np.rint(soft / top * 255).astype(np.uint8)) + 0.5) / 255 * top
    threshold = min(max(threshold, float(np.quantile(soft, 1 - MOST))), float(np.quantile(soft, 1 - LEAST)))
    sure = _without_specks(opened(soft > threshold))
    mask = np.where(sure, 1, np.where(soft > threshold / 2, IGNORED, 0)).astype(np.uint8)
    return PseudoMask(soft.astype(np.float32), mask)


def opened(mask: np.ndarray) -> np.ndarray:
    """Without what no 3 x 3 square fits into; outside of the picture counts as anomalous, so nothing is lost there."""
    shrunk = ~grow(~mask, 1)
    return grow(shrunk, 1) & mask


def _without_specks(mask: np.ndarray) -> np.ndarray:
    numbers, count = label(mask)
    areas = np.bincount(numbers.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= SPECK)[numbers]


# --- whether it may be used -------------------------------------------------------------------------------------------


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [-1, 1], 1 where the grey values of two pictures agree; a Gaussian window of 1.5 pixels.

    Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861
    """
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    x, y = (p.astype(np.float32) @ weights / 255 for p in (a, b))
    mx, my = blurred(x, 1.5), blurred(y, 1.5)
    vx, vy = blurred(x * x, 1.5) - mx * mx, blurred(y * y, 1.5) - my * my
    cov = blurred(x * y, 1.5) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))


def quality(made: np.ndarray, source: np.ndarray, mask: np.ndarray, clip_gain: float | None) -> dict[str, float | None]:
    """What the filter looks at.

    clip_gain: how much closer the picture came to the detailed than to the normal prompt; higher is better; None where
    there is no CLIP. changed_frac: share of pixels that changed. outside_ssim: mean SSIM outside of the grown mask;
    1 is best, and is given where the mask leaves nothing outside.
    """
    outside = ~grow(mask == 1, max(1, round(MARGIN * max(mask.shape))))
    alike = float(ssim(made, source)[outside].mean()) if outside.any() else 1.0
    return {
        "clip_gain": clip_gain,
        "changed_frac": float((change(made, source) > CHANGED).mean()),
        "outside_ssim": alike,
    }


def objections(scores: Mapping[str, float | None]) -> tuple[str, ...]:
    """Why a picture with these scores must not be used; () where it may."""
    found = []
    gain, changed, alike = scores["clip_gain"], scores["changed_frac"] or 0.0, scores["outside_ssim"] or 0.0
    if gain is not None and not gain > 0:
        found.append(f"CLIP sees no more of the defect than before (clip_gain {gain:.3f})")
    if changed < CHANGED_SHARE[0]:
        found.append(f"nearly nothing changed (changed_frac {changed:.4f})")
    if changed > CHANGED_SHARE[1]:
        found.append(f"too much changed (changed_frac {changed:.2f})")
    if alike < SIMILAR:
        found.append(f"the object outside of the defect is another (outside_ssim {alike:.2f})")
    return tuple(found)


# --- judging many -----------------------------------------------------------------------------------------------------


def mask_attention_iou(mask: np.ndarray, attention: np.ndarray) -> float:
    """Overlap of a mask (H, W), 1 anomalous and 255 left out, with the cells of above-average attention (s, s)."""
    looked = np.asarray(
        Image.fromarray((attention > attention.mean()).astype(np.uint8)).resize(
            mask.shape[::-1], Image.Resampling.NEAREST
        )
    )
    known = mask != IGNORED
    both, either = (op(looked == 1, mask == 1)[known].sum() for op in (np.logical_and, np.logical_or))
    return float(both / either) if either else 0.0


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean divergence of p(class | picture) from p(class); 1 to the number of classes, higher is better.

    probabilities: (N, classes), rows sum to 1, of a classifier of yours; the published figures use Inception-v3.
    Salimans et al. 2016, https://arxiv.org/abs/1606.03498
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not len(p) or not np.allclose(p.sum(axis=1), 1, atol=1e-3) or p.min() < 0:
        raise WrongInput(f"the Inception score takes (N, classes) probabilities whose rows sum to 1; got {p.shape}.")
    marginal = p.mean(axis=0)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(axis=1).mean()))


def ic_lpips(made: Sequence[Any], references: Sequence[Any], distance: Callable[[Any, Any], float]) -> float:
    """Diversity inside clusters: mean distance of generated pictures that are nearest to the same real one; higher is
    more diverse.

    distance: two pictures to a number, such as LPIPS of a network of yours. Clusters with fewer than two pictures are
    left out; NaN where no other is left. Ojha et al. 2021, https://arxiv.org/abs/2104.06820
    """
    if not references:
        raise WrongInput("IC-LPIPS got no reference pictures; give at least one real picture.")
    clusters: dict[int, list[Any]] = {}
    for picture in made:
        nearest = int(np.argmin([distance(picture, reference) for reference in references]))
        clusters.setdefault(nearest, []).append(picture)
    spread = [
        np.mean([distance(a, b) for k, a in enumerate(members) for b in members[:k]])
        for members in clusters.values()
        if len(members) > 1
    ]
    return float(np.mean(spread)) if spread else float("nan")
