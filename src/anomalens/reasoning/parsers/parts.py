"""Parts on a plain ground, without a model: what differs from the background, in the kinds that normal pictures show.

Learnt from normal pictures alone: the background (a smooth surface, so that uneven light does no harm), the difference
from it that noise does not reach, and the kinds of parts by size, shape and colour. For trays, conveyor belts and fixed
cameras; a picture that is full of things from edge to edge has no ground to differ from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from ...errors import NotFitted, WrongInput
from ...images import resize, to_float
from ...regions import label as components
from ...types import Sample
from ..scene import UNKNOWN, Cut, Masks, Parsed, SceneObject, convex_hull, cut_out, measure, outer_corners

if TYPE_CHECKING:
    from typing_extensions import Self

CLUTTER = ""
LONGEST = 512  # pixels of the longest side while looking for parts
MOST_PICTURES = 32  # that the background is learnt from
MOST_OBJECTS = 600  # that the number of kinds is chosen with
MOST_KINDS = 8
LEAST_VISIBLE = 4.0  # CIELAB units; a smaller difference from the background is never a part
CLEARLY_APART = 0.6  # silhouette from which several kinds are believed
FRAME = 0.08  # width of the frame that is taken for ground at first, as a share of half a side
NECK = 0.7  # parts are split where the bridge is narrower than this share of the smaller one
# What is one unit of difference between two parts: area and aspect as ratios, fill, then lightness and colour in CIELAB.
UNITS = np.array([np.log(1.6), np.log(1.5), 0.15, 20.0, 12.0, 12.0])


@dataclass
class Parts:
    """Finds what differs from a learnt background, splits parts that touch, and tells the kinds apart.

    names: what the kinds are called, the largest first; without them part_1, part_2, ... `describe` tells which is which.
    kinds: how many there are; None takes as many as names, or finds it out.
    background: smooth = an even ground under uneven light; fixed = any ground that stays the same while the parts lie in
        another place each time.
    sensitivity: above 1 finds fainter parts, below 1 ignores more.
    smallest: share of the picture; smaller places are noise.
    split: whether parts that touch are cut at the neck between them.
    regions: name to (x0, y0, x1, y1), in pixels, or in fractions where no number is above 1.
    """

    names: Sequence[str] = ()
    kinds: int | None = None
    background: Literal["smooth", "fixed"] = "smooth"
    sensitivity: float = 1.0
    smallest: float = 0.0005
    split: bool = True
    regions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    # The background (h, w, 3) in CIELAB; the difference that makes a part; centres of the kinds, then of clutter, (n, 6) in
    # UNITS, and how far from them still counts; how many of each kind a normal picture has.
    learned: ClassVar[tuple[str, ...]] = ("ground", "threshold", "centres", "reach", "usual_count")

    def __post_init__(self) -> None:
        self.names = tuple(self.names)
        if self.background not in ("smooth", "fixed"):
            raise WrongInput(f"background is {self.background!r}; give 'smooth' or 'fixed'.")
        if self.kinds is not None and self.kinds < 1:
            raise WrongInput(f"kinds is {self.kinds}; give 1 or more, or None to find it out.")
        if self.kinds is not None and self.names and len(self.names) != self.kinds:
            raise WrongInput(f"{len(self.names)} names came for {self.kinds} kinds; give one name for each kind.")
        if UNKNOWN in self.names or len(set(self.names)) != len(self.names):
            raise WrongInput(f"names are {self.names}; give different names, none of them {UNKNOWN!r}.")
        if not self.sensitivity > 0:
            raise WrongInput(f"sensitivity is {self.sensitivity}; give a number above 0.")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the kinds, and `unknown`."""
        count = len(self.names) or self.kinds or len(getattr(self, "usual_count", ()))
        return (*(self.names or tuple(f"part_{i + 1}" for i in range(count))), UNKNOWN)

    def fit(self, samples: Iterable[Sample]) -> Self:
        """Learn from normal pictures.

        Raises:
            WrongInput: no picture, nothing that stands out, or fewer different parts than names.
        """
        samples = list(samples)
        if not samples:
            raise WrongInput("parts learns from normal pictures and got none; give at least one, better twenty.")
        chosen = [samples[i] for i in _spread(len(samples), MOST_PICTURES)]
        shape = _working_size(chosen[0].image().shape[:2])
        pictures = np.stack([_to_lab(resize(s.image(), shape)) for s in chosen])
        middle = np.median(pictures, axis=0)
        self.ground = (middle if self.background == "fixed" else _surface(middle)).astype(np.float32)
        self.threshold = _threshold(np.concatenate([self._difference(p)[::3, ::3].ravel() for p in pictures]))
        found = [[_vector(thing) for thing in self._find(sample).scene.objects] for sample in samples]
        if not any(found):
            raise WrongInput(
                f"nothing stands out from the background of {len(samples)} normal pictures; raise sensitivity, "
                "or use another parser."
            )
        self._learn_kinds(found)
        return self

    def parse(self, sample: Sample) -> Parsed:
        """The parts of one picture; what normal pictures show as rare clutter is left out."""
        self._require_fit()
        parsed = self._find(sample)
        named = [
            (replace(thing, label=self._name(_vector(thing))), cut)
            for thing, cut in zip(parsed.scene.objects, cast(Masks, parsed.masks).cuts, strict=True)
        ]
        kept = [(thing, cut) for thing, cut in named if thing.label != CLUTTER]
        objects = tuple(replace(thing, id=i) for i, (thing, _) in enumerate(kept))
        size = parsed.scene.height, parsed.scene.width
        return Parsed(replace(parsed.scene, objects=objects), Masks(tuple(cut for _, cut in kept), size))

    def describe(self) -> list[dict[str, Any]]:
        """What each kind is: label, count per normal picture, area as a share of the picture, aspect, fill, colour (rgb)."""
        self._require_fit()
        rows = []
        for name, centre, count in zip(self.labels, self.centres * UNITS, self.usual_count, strict=False):
            rows.append(
                {
                    "label": name,
                    "count": round(float(count), 2),
                    "area_frac": float(f"{np.exp(centre[0]):.3g}"),
                    "aspect": round(float(np.exp(centre[1])), 2),
                    "fill": round(float(centre[2]), 2),
                    "rgb": tuple(int(v) for v in _to_rgb(centre[3:])),
                }
            )
        return rows

    def _require_fit(self) -> None:
        if getattr(self, "centres", None) is None:
            raise NotFitted("parts finds things only after fit: call fit(samples) with normal samples.")

    def _find(self, sample: Sample) -> Parsed:
        """Everything that stands out, without names."""
        image = sample.image()
        small = resize(image, self.ground.shape[:2])
        difference = self._difference(_to_lab(small))
        different = _at_half_height(difference, difference > self.threshold / self.sensitivity)
        different = _neighbours(different) >= 5  # the majority of nine: no speck, no frayed edge
        masks = [
            _enlarged(replace(place, shape=part), different.shape, image.shape[:2])
            for place in _places(different, self.smallest * different.size)
            for part in (_split(place.shape) if self.split else [place.shape])
        ]
        return measure(
            masks, [""] * len(masks), image, category=sample.category, image_id=sample.id, regions=self.regions
        )

    def _difference(self, lab: np.ndarray) -> np.ndarray:
        """(h, w) distance from the background in CIELAB, after the light of this picture is taken out."""
        offset = lab - self.ground
        offset = _soften(offset - _surface(offset))
        return np.sqrt((offset**2).sum(axis=2))

    def _learn_kinds(self, found: Sequence[Sequence[np.ndarray]]) -> None:
        """Group the parts of normal pictures. Groups in few pictures, such as of shadows, are clutter."""
        vectors = np.array([vector for things in found for vector in things])
        wanted = self.kinds or len(self.names)
        if len(np.unique(vectors, axis=0)) < wanted:
            raise WrongInput(
                f"{wanted} kinds of parts are asked for, and the normal pictures have {len(vectors)} parts; "
                "give fewer names or more pictures."
            )
        centres = _number_of_kinds(vectors[_spread(len(vectors), MOST_OBJECTS)])
        nearest = _nearest(vectors, centres)
        picture = np.repeat(np.arange(len(found)), [len(things) for things in found])
        seen = np.array([len(set(picture[nearest == i])) for i in range(len(centres))])
        often = (seen * 3 >= len(found)) | (seen == seen.max())
        kinds, clutter = centres[often], centres[~often]
        if wanted and len(kinds) != wanted:
            common = vectors[often[nearest]]
            enough = len(np.unique(common, axis=0)) >= wanted
            kinds, clutter = (
                (_clusters(common, wanted), clutter) if enough else (_clusters(vectors, wanted), clutter[:0])
            )
        kinds = kinds[np.argsort(-kinds[:, 0], kind="stable")]  # the largest parts first
        self.centres = np.concatenate([kinds, clutter])
        nearest = _nearest(vectors, self.centres)
        distance = np.linalg.norm(vectors - self.centres[nearest], axis=1)
        own = [distance[nearest == i] for i in range(len(self.centres))]
        # Twice as far as nearly all the normal ones, and a little more, since pictures may be few.
        self.reach = np.array([2 * np.quantile(d, 0.95) + 1 if len(d) else 1.0 for d in own])
        self.usual_count = np.bincount(nearest, minlength=len(self.centres))[: len(kinds)] / len(found)

    def _name(self, vector: np.ndarray) -> str:
        distance = np.linalg.norm(self.centres - vector, axis=1)
        nearest = int(distance.argmin())
        if distance[nearest] > self.reach[nearest]:
            return UNKNOWN
        return self.labels[nearest] if nearest < len(self.usual_count) else CLUTTER


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors[:, None] - centres, axis=2).argmin(axis=1)


def _vector(thing: SceneObject) -> np.ndarray:
    """(6,) what a kind is known by, in UNITS."""
    lab = _to_lab(np.array(thing.rgb, np.float32)[None, None] / 255)[0, 0]
    return np.array([np.log(thing.area_frac), np.log(thing.aspect), thing.fill, *lab]) / UNITS


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` indices, evenly over all."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _working_size(size: tuple[int, ...]) -> tuple[int, int]:
    factor = max(1.0, max(size) / LONGEST)
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


# --- background --------------------------------------------------------------------------------------------------


def _surface(values: np.ndarray) -> np.ndarray:
    """A smooth surface (h, w, c), of second degree, through the part of `values` (h, w, c) that is ground.

    The ground is what the frame of the picture mostly shows, and whatever else lies on the same surface: least squares,
    again and again without what is far away.
    """
    height, width = values.shape[:2]
    basis = _basis(height, width)
    step = max(1, round(np.sqrt(height * width / 20_000)))
    b = basis[::step, ::step].reshape(-1, 6)
    v = values[::step, ::step].reshape(len(b), -1)
    frame = (np.abs(b[:, 1]) >= 1 - FRAME) | (np.abs(b[:, 2]) >= 1 - FRAME)
    coefficients = np.zeros((6, v.shape[1]), np.float32)
    coefficients[0] = np.median(v[frame], axis=0)
    kept = frame
    for terms in (3, 6, 6, 6):
        away = np.linalg.norm(v - b @ coefficients, axis=1)
        limit = max(3 * np.median(away[kept]), LEAST_VISIBLE)
        near = away <= limit
        if near.sum() < 10 * terms:
            break
        kept = near
        solved = np.linalg.lstsq(b[kept, :terms], v[kept], rcond=None)[0]
        coefficients = np.zeros_like(coefficients)
        coefficients[:terms] = solved
    return basis @ coefficients


@lru_cache(maxsize=4)
def _basis(height: int, width: int) -> np.ndarray:
    """(h, w, 6): 1, x, y, xx, xy, yy for x and y from -1 to 1."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2).astype(np.float32)


def _threshold(differences: np.ndarray) -> float:
    """The difference that makes a part: between what noise reaches and Otsu's level, half way on a ratio scale.

    Source:
        Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076
    """
    top = float(np.quantile(differences, 0.999))
    counts, edges = np.histogram(differences, bins=256, range=(0.0, max(top, 1e-6)))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    level = edges[int(np.nan_to_num(between).argmax()) + 1]
    noise = 3 * float(np.median(differences[differences <= level]))
    return max(float(np.sqrt(noise * max(level, noise))), LEAST_VISIBLE)


def _to_lab(picture: np.ndarray) -> np.ndarray:
    """(..., 3) uint8, uint16 or float in 0..1 sRGB to CIELAB under D65, float32: lightness 0..100, then two of colour.

    Source:
        IEC 61966-2-1:1999 and CIE 15
    """
    rgb = picture if picture.dtype.kind == "f" else to_float(picture)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.433953, 0.212671, 0.017758], [0.376220, 0.715160, 0.109477], [0.189828, 0.072169, 0.872766]], np.float32
    )  # of white: (1, 1, 1)
    t = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * ((29 / 6) ** 2 / 3) + 4 / 29)
    x, y, z = np.moveaxis(t, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def _to_rgb(lab: np.ndarray) -> np.ndarray:
    """The sRGB colour (3,) in 0..255 nearest to a CIELAB colour (3,), for people to read."""
    y = (lab[0] + 16) / 116
    t = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = np.where(t > 6 / 29, t**3, (t - 4 / 29) * 3 * (6 / 29) ** 2)
    inverse = np.array([[3.0799, -0.92123, 0.052890], [-1.53716, 1.87601, -0.204043], [-0.542782, 0.0452442, 1.15115]])
    linear = np.clip(xyz @ inverse, 0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def _soften(values: np.ndarray) -> np.ndarray:
    """(h, w, c) averaged with the weights 1 2 1 along both sides, twice: fine texture fades."""
    for _ in range(2):
        p = np.pad(values, ((1, 1), (0, 0), (0, 0)), mode="edge")
        values = (p[:-2] + 2 * p[1:-1] + p[2:]) / 4
        p = np.pad(values, ((0, 0), (1, 1), (0, 0)), mode="edge")
        values = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 4
    return values


# --- places ------------------------------------------------------------------------------------------------------


def _at_half_height(difference: np.ndarray, different: np.ndarray) -> np.ndarray:
    """The same places with their outline where the difference has fallen to half, as softening has spread it."""
    outline = different & _highest(~different)
    return different & ~(outline & (difference < _highest(difference) / 2))


def _highest(values: np.ndarray, reach: int = 2) -> np.ndarray:
    """(h, w) the highest value of the square of 5 x 5 around each pixel."""
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        values = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis).max(axis=-1)
    return values


def _neighbours(mask: np.ndarray, corners: bool = True) -> np.ndarray:
    """(h, w) how many of a pixel and its 8 (or 4) neighbours are set; outside counts as the edge."""
    p = np.pad(mask, 1, mode="edge").astype(np.int8)
    across = p[:, :-2] + p[:, 1:-1] + p[:, 2:]
    if corners:
        return across[:-2] + across[1:-1] + across[2:]
    return p[:-2, 1:-1] + across[1:-1] + p[2:, 1:-1]


def _places(mask: np.ndarray, smallest: float) -> list[Cut]:
    """Connected places with small holes filled."""
    return [replace(place, shape=_filled(place.shape)) for place in cut_out(components(mask)[0], smallest)]


def _filled(shape: np.ndarray, largest: float = 0.05) -> np.ndarray:
    """Holes of up to 5 % of the area closed, such as highlights; a washer keeps its hole."""
    numbered, count = components(np.pad(~shape, 1, constant_values=True), connectivity=4)
    areas = np.bincount(numbered.ravel(), minlength=count + 1)
    small = areas <= largest * shape.sum()
    small[0] = small[numbered[0, 0]] = False
    return shape | small[numbered[1:-1, 1:-1]]


def _depth(shape: np.ndarray) -> np.ndarray:
    """How many layers of pixels lie around each pixel; layers alternate between 4 and 8 neighbours, so discs stay round."""
    left = np.pad(shape, 1)
    depth = left.astype(np.int32)
    while left.any():
        even = int(depth.max()) % 2 == 0
        left = left & (_neighbours(left, corners=even) == (9 if even else 5))
        depth += left
    return depth[1:-1, 1:-1]


def _split(shape: np.ndarray) -> list[np.ndarray]:
    """The parts of a place that consists of several which touch; [shape] where no neck is plain."""
    y, x = np.nonzero(shape)
    hull = convex_hull(outer_corners(x, y))
    around = abs(float(np.dot(hull[:, 0], np.roll(hull[:, 1], 1)) - np.dot(hull[:, 1], np.roll(hull[:, 0], 1)))) / 2
    if len(x) > 0.96 * around:  # no notch, so no neck
        return [shape]
    depth = _depth(shape)
    seeds, level = _seeds(depth)
    if len(seeds) < 2:
        return [shape]
    numbered, _ = components(depth > level)
    owner = np.zeros(shape.shape, np.int32)
    for i, (row, col) in enumerate(seeds, 1):
        owner[numbered == numbered[row, col]] = i
    return _grown(owner, shape)


def _seeds(depth: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """The deepest pixels of parts with a plain neck between them, and a level above which they are apart.

    Levels are lowered from the top. Where two hills meet, the lower one is a part of its own if the pass between them is
    low beside it; else it belongs to the higher one.
    """
    top = int(depth.max())
    hills: list[tuple[int, tuple[int, int]]] = []  # still apart: (height, place)
    parts: list[tuple[int, int]] = []
    highest_pass = 0
    step = max(1, top // 24)
    for level in range(top - 1, -1, -step):
        numbered, count = components(depth > level)
        own: dict[int, list[tuple[int, tuple[int, int]]]] = {}
        for hill in hills:
            own.setdefault(int(numbered[hill[1]]), []).append(hill)
        for i in range(1, count + 1):
            if i not in own:
                height = int(depth[numbered == i].max())
                place = np.argwhere((numbered == i) & (depth == height))[0]
                own[i] = [(height, (int(place[0]), int(place[1])))]
        hills = []
        for meeting in own.values():
            meeting.sort(key=lambda hill: -hill[0])
            hills.append(meeting[0])
            for height, place in meeting[1:]:
                neck = level + 1
                if neck <= min(NECK * height, height - 2) and height >= 0.4 * top:
                    parts.append(place)
                    highest_pass = max(highest_pass, level + step)
    return [hills[0][1], *parts] if hills else [], highest_pass


def _grown(owner: np.ndarray, shape: np.ndarray) -> list[np.ndarray]:
    """Each pixel of the shape given to the seed that reaches it first."""
    owner = np.where(shape, owner, 0)
    while True:
        p = np.pad(owner, 1)
        around = np.stack([p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]])
        grown = np.where((owner == 0) & shape, around.max(axis=0), owner)
        if np.array_equal(grown, owner):
            return [grown == i for i in range(1, int(grown.max()) + 1) if (grown == i).any()]
        owner = grown


def _enlarged(part: Cut, size: tuple[int, ...], wanted: tuple[int, ...]) -> Cut:
    """A part of a picture of one size (H, W) in the same picture at another size, each pixel from the nearest."""
    starts, chosen = [], []
    for own, whole, new, first in zip(part.shape.shape, size, wanted, (part.top, part.left), strict=True):
        from_part = ((np.arange(new) + 0.5) * whole / new).astype(int) - first
        inside = np.flatnonzero((from_part >= 0) & (from_part < own))
        starts.append(int(inside[0]) if len(inside) else 0)
        chosen.append(from_part[inside])
    return Cut(part.shape[np.ix_(*chosen)], *starts)


# --- kinds -------------------------------------------------------------------------------------------------------


def _clusters(vectors: np.ndarray, count: int) -> np.ndarray:
    """The centres (count, d) of k-means, begun with points that are far apart, the first nearest to the median.

    Source:
        Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489; Gonzalez 1985, https://doi.org/10.1016/0304-3975(85)90224-5
    """
    first = int(np.linalg.norm(vectors - np.median(vectors, axis=0), axis=1).argmin())
    centres = vectors[[first]]
    for _ in range(count - 1):
        away = np.linalg.norm(vectors[:, None] - centres, axis=2).min(axis=1)
        centres = np.concatenate([centres, vectors[[int(away.argmax())]]])
    for _ in range(100):
        nearest = _nearest(vectors, centres)
        moved = np.stack(
            [vectors[nearest == i].mean(axis=0) if (nearest == i).any() else c for i, c in enumerate(centres)]
        )
        if np.allclose(moved, centres, atol=1e-9):
            break
        centres = moved
    return centres


def _number_of_kinds(vectors: np.ndarray) -> np.ndarray:
    """Centres of as many kinds as are clearly apart, and of as many within each of them.

    Source:
        silhouette, Rousseeuw 1987, https://doi.org/10.1016/0377-0427(87)90125-7
    """
    best, groups = CLEARLY_APART, np.zeros(len(vectors), int)
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    for count in range(2, min(MOST_KINDS, len(vectors) - 1) + 1):
        centres = _clusters(vectors, count)
        nearest = _nearest(vectors, centres)
        common = np.flatnonzero(np.bincount(nearest, minlength=count) >= max(2, 0.02 * len(vectors)))
        if len(common) < 2 or _closest(centres[common]) < 1:
            continue
        kept = np.isin(nearest, common)  # a group of very few parts is no kind, and no reason against the others
        value = _silhouette(distances[np.ix_(kept, kept)], nearest[kept])
        if value > best:
            best, groups = value, np.where(kept, nearest, -1)
    names = np.unique(groups[groups >= 0])
    if len(names) == 1:
        return np.median(vectors, axis=0)[None]
    # Large differences hide small ones: a screw is so unlike a nut and a washer that these two look alike.
    return np.concatenate([_number_of_kinds(vectors[groups == name]) for name in names])


def _closest(centres: np.ndarray) -> float:
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)
    return float(apart[np.triu_indices(len(centres), 1)].min())


def _silhouette(distances: np.ndarray, groups: np.ndarray) -> float:
    """Mean over points of (b - a) / max(a, b): a to its own group, b to the nearest other; from -1 to 1."""
    names = np.unique(groups)
    member = groups[:, None] == names  # (n, groups)
    sizes = member.sum(axis=0)
    mean = distances @ member / np.maximum(sizes - member, 1)  # without itself in its own group
    own = (mean * member).sum(axis=1)
    other = np.where(member, np.inf, mean).min(axis=1)
    highest = np.maximum(own, other)
    return float(np.where(highest > 0, (other - own) / np.where(highest > 0, highest, 1), 0.0).mean())


PARSER = Parts
