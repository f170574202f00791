"""What each part of PNPT is for, on a set drawn here whose truth is known: python benchmarks/pnpt_ablation.py

Four categories of 96 pixels (stripes, a grid of dots, a ring, a disc of checks), each picture with a random phase, light
and noise of its own; things are shifted by up to a cell of the network's grid. A defective picture is a good one in which
a place is damaged, so what it should have been is known to the pixel: a foreign patch, a missing part, or a patch of
another category ("swap": what a model of many categories can rebuild although it is wrong here).

    restoration margin = mean over feature cells under the defect of cos(R, F(good picture)) - cos(R, F(defective picture))

Above 0, R is nearer to what should be there; below, the network has rebuilt the defect. Every variant is trained with the
same number of passes over the pictures, for each seed, which draws pictures, first weights and order. Figures lie as JSON
lines in --work, and a run that was stopped goes on. The tables have means over seeds, lowest and highest in brackets.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import table

import anomalens as al
from anomalens import metrics
from anomalens.backbones import network
from anomalens.detectors.pnpt import PNPT, cosine
from anomalens.parts.batches import batches
from anomalens.parts.grids import to_numpy
from anomalens.parts.threads import cores
from anomalens.types import Sample, View

SIZE = 96
CATEGORIES = ("stripes", "dots", "ring", "checks")
DEFECTS = ("foreign", "missing", "swap")
SHIFT = 0.15  # of the side; a cell is 16 of 96 pixels, and what moves less needs no alignment
GROUND = np.array((0.16, 0.18, 0.22))
LIGHT, DARK = np.array((0.80, 0.74, 0.62)), np.array((0.38, 0.30, 0.26))
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "off": {"pool": "off", "streams": "sample"},
    "off, both streams": {"pool": "off"},
    "off, UniAD-style": {"pool": "off", "streams": "sample", "neighbours": 3},
    "learnable pool": {"pool": "learnable"},
    "HPE of the last stage": {"embed": "last"},
    "without alignment": {"align": False},
    "without coupling back": {"couple_back": False},
    "without context": {"context": False},
    "1 exemplar": {"exemplars": 1},
    "10 exemplars": {"exemplars": 10},
}
SINGLE = ("full", "off")  # variants that are also trained on each category alone


# --- the pictures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """One picture: the defect is "" for a good one, which is the same in every other pixel."""

    category: str
    split: str
    index: int
    seed: int
    defect: str = ""

    def sample(self) -> Sample:
        picture, mask = self.draw()
        return Sample(
            id=f"{self.category}/{self.split}/{self.defect or 'good'}/{self.index:03d}",
            views={"image": View("image", partial(np.array, picture))},
            category=self.category,
            label=int(bool(self.defect)),
            mask=View("mask", partial(np.array, mask)) if self.defect else None,
            defect=self.defect or "good",
        )

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(SIZE, SIZE, 3) uint8 and the place of the defect (SIZE, SIZE) bool."""
        key = [self.seed, CATEGORIES.index(self.category), ("train", "good", "bad").index(self.split), self.index]
        thing, light = np.random.default_rng([*key, 0]), np.random.default_rng([*key, 1])
        colours, body = surface(self.category, thing)
        mask = np.zeros((SIZE, SIZE), bool)
        if self.defect:
            mask = self.damage(colours, body, np.random.default_rng([*key, 2]))
        x, y = grid()
        slope = 0.06 * light.uniform(-1, 1, 2)
        field = light.uniform(0.94, 1.06) + slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
        noisy = colours * field[..., None] + light.normal(0, 0.015, colours.shape)
        return np.rint(255 * noisy.clip(0, 1)).astype(np.uint8), mask

    def damage(self, colours: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Paint the defect over an elliptic place on the thing."""
        x, y = grid()
        inner = body & (np.maximum(abs(x - 0.5), abs(y - 0.5)) < 0.36)
        centre = rng.choice(np.argwhere(inner)) / SIZE
        across, down = rng.uniform(0.12, 0.17, 2)
        mask = ((x - centre[1]) / across) ** 2 + ((y - centre[0]) / down) ** 2 < 1
        if self.defect == "foreign":
            coarse = np.kron(rng.uniform(-0.25, 0.25, (16, 16, 1)), np.ones((SIZE // 16, SIZE // 16, 1)))
            filling = np.broadcast_to(rng.uniform(0.2, 0.8, 3), colours.shape) + coarse
        elif self.defect == "missing":
            filling = np.broadcast_to(GROUND, colours.shape)
        else:
            others = [c for c in ("stripes", "dots", "checks") if c != self.category]
            filling = texture(str(rng.choice(others)), rng)
        colours[mask] = filling[mask]
        return mask


def grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of pixel centres, in sides of the picture."""
    line = (np.arange(SIZE) + 0.5) / SIZE
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


def texture(name: str, rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE, 3): a pattern over the whole picture, in a random phase."""
    x, y = grid()
    u, v = x + rng.random(), y + rng.random()
    if name == "stripes":
        cover = np.sin(2 * np.pi * 9 * (0.8 * u + 0.6 * v)) > 0
    elif name == "dots":
        cover = (7 * u % 1 - 0.5) ** 2 + (7 * v % 1 - 0.5) ** 2 < 0.09
    else:
        cover = (np.floor(11 * u) + np.floor(11 * v)) % 2 > 0
    return np.where(cover[..., None], LIGHT, DARK)


def surface(category: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours (SIZE, SIZE, 3) of a good thing, and where it is."""
    if category in ("stripes", "dots"):
        return texture(category, rng), np.ones((SIZE, SIZE), bool)
    x, y = grid()
    left, top = 0.5 + rng.uniform(-SHIFT, SHIFT, 2)
    r = np.hypot(x - left, y - top)
    body = r < 0.32 if category == "checks" else abs(r - 0.24) < 0.08
    if category == "checks":
        colours = np.where(body[..., None], texture("checks", rng), GROUND)
    else:  # a ring with eight rivets, turned at random
        turn = np.arctan2(y - top, x - left) + rng.uniform(0, np.pi / 4)
        rivet = (abs(r - 0.24) < 0.03) & (np.cos(8 * turn) > 0.75)
        colours = np.where(body[..., None], np.where(rivet[..., None], DARK, LIGHT), GROUND)
    return colours, body


@dataclass(frozen=True)
class Pictures:
    train: list[Sample]
    test: list[Sample]
    twins: dict[str, Sample]  # the good picture behind each defective one, by its id


def pictures(seed: int, train: int = 40, good: int = 20, bad: int = 20) -> Pictures:
    """Of each category: `train` good ones to learn from, `good` and `bad` to judge; defects take turns."""
    learn = [Drawing(c, "train", i, seed).sample() for c in CATEGORIES for i in range(train)]
    fine = [Drawing(c, "good", i, seed).sample() for c in CATEGORIES for i in range(good)]
    damaged = [Drawing(c, "bad", i, seed, DEFECTS[i % 3]) for c in CATEGORIES for i in range(bad)]
    broken = [d.sample() for d in damaged]
    twins = {s.id: replace(d, defect="").sample() for s, d in zip(broken, damaged, strict=True)}
    return Pictures(learn, fine + broken, twins)


# --- figures ----------------------------------------------------------------------------------------------------------


def images_of(samples: list[Sample]) -> np.ndarray:
    """(B, 3, S, S) float32, as a detector reads them."""
    return np.concatenate([b.images for b in batches(samples, (SIZE, SIZE))])


def auroc(scores: Any, labels: Any) -> float:
    return float(metrics.get("auroc")(np.asarray(scores), np.asarray(labels)))


def over_categories(samples: list[Sample], scores: list[float], kinds: tuple[str, ...] = DEFECTS) -> float:
    """Mean image AUROC over categories, good ones against defects of these kinds."""
    found = []
    for category in dict.fromkeys(s.category for s in samples):
        own = [i for i, s in enumerate(samples) if s.category == category and s.defect in ("good", *kinds)]
        found.append(auroc([scores[i] for i in own], [samples[i].label for i in own]))
    return float(np.mean(found))


def pixels(samples: list[Sample], maps: list[np.ndarray], kinds: tuple[str, ...] = DEFECTS) -> float:
    """Mean pixel AUROC over categories."""
    found = []
    for category in dict.fromkeys(s.category for s in samples):
        own = [i for i, s in enumerate(samples) if s.category == category and s.defect in ("good", *kinds)]
        masks = [samples[i].mask.read() if samples[i].mask else None for i in own]
        found.append(metrics.pixel([maps[i] for i in own], masks, which=("auroc",))["auroc"].value)
    return float(np.mean(found))


def judged(detector: PNPT, samples: list[Sample], **how: Any) -> dict[str, Any]:
    """All maps of the streams and their image scores. how: prompts in place of those of the pool."""
    maps: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[float]] = {}
    for at in range(0, len(samples), 16):
        part = samples[at : at + 16]
        prompts = detector.tokens_of(images_of([how["shown"][s.id] for s in part])) if how else None
        stages = detector.trace(images_of(part), [s.category for s in part], prompts)
        for name in ("map", "m_P", "m_S"):
            if name in stages:
                maps.setdefault(name, []).extend(to_numpy(stages[name]))
                scores.setdefault(name, []).extend(to_numpy(detector.image_scores(stages[name])).tolist())
    return {"maps": maps, "scores": scores}


def margins(detector: PNPT, samples: list[Sample], twins: dict[str, Sample]) -> dict[str, float]:
    """Restoration margin of each stream, mean over defective pictures, scales together; and over swaps alone."""
    import torch

    found: dict[str, list[float]] = {}
    for s in [s for s in samples if s.label]:
        stages = detector.trace(images_of([s]), [s.category])
        F_good = [torch.as_tensor(f) for f in network(detector)(images_of([twins[s.id]]))]
        under = s.mask.read().astype(np.float32)
        for stream in ("R_P", "R_S"):
            if stream not in stages:
                continue
            own = []
            for R, F, good in zip(stages[stream], stages["F"], F_good, strict=True):
                side = R.shape[-1]
                cells = under.reshape(side, SIZE // side, side, SIZE // side).mean(axis=(1, 3)) >= 0.5
                gain = to_numpy(cosine(R, good) - cosine(R, F))[0]
                own.append(gain[cells])
            found.setdefault(stream, []).append(float(np.concatenate(own).mean()))
            if s.defect == "swap":
                found.setdefault(f"{stream} swap", []).append(found[stream][-1])
    return {name: float(np.mean(values)) for name, values in found.items()}


def figures(detector: PNPT, data: Pictures) -> dict[str, Any]:
    """Everything that is told of one model of all categories."""
    detector.prompt = "label"
    test = data.test
    seen = judged(detector, test)
    out: dict[str, Any] = {"loss": detector.trained["loss"]}
    for name, scores in seen["scores"].items():
        out[f"{name} image"] = over_categories(test, scores)
        out[f"{name} pixel"] = pixels(test, seen["maps"][name])
        out[f"{name} pixel swap"] = pixels(test, seen["maps"][name], ("swap",))
        out[f"{name} image by category"] = {
            c: over_categories([s for s in test if s.category == c], [v for s, v in zip(test, scores, strict=True)
                                                                     if s.category == c])
            for c in CATEGORIES
        }  # fmt: skip
    out |= {f"margin {k}": v for k, v in margins(detector, test, data.twins).items()}
    both = [v for k, v in out.items() if k in ("margin R_P", "margin R_S")]
    out["margin"] = float(np.mean(both))
    if detector.pool == "exemplars" and detector.exemplars is None:
        out |= prompts_tested(detector, data, seen)
    return out


def prompts_tested(detector: PNPT, data: Pictures, seen: dict[str, Any]) -> dict[str, float]:
    """What becomes of the scores when the prompt is another one than it should be."""
    test, out = data.test, {}
    fine = [i for i, s in enumerate(test) if not s.label]
    first = {c: next(s for s in data.train if s.category == c) for c in CATEGORIES}
    following = dict(zip(CATEGORIES, (*CATEGORIES[1:], CATEGORIES[0]), strict=True))
    wrong = judged(detector, test, shown={s.id: first[following[s.category]] for s in test})
    itself = judged(detector, test, shown={s.id: s for s in test})
    for name, scores in seen["scores"].items():
        means = [np.mean([found["scores"][name][i] for i in fine]) for found in (wrong, seen)]
        out[f"wrong prompt, {name}"] = float(means[0] / means[1])
        out[f"self prompt, {name}"] = over_categories(test, scores) - over_categories(test, itself["scores"][name])
    detector.prompt = "retrieve"
    found = list(detector.predict([replace(s, category="") for s in test]))
    right = [p.category == s.category for p, s in zip(found, test, strict=True)]
    out["retrieval"] = float(np.mean(right))
    out["retrieval of defective ones"] = float(np.mean([r for r, s in zip(right, test, strict=True) if s.label]))
    out["retrieve image"] = over_categories(test, [p.score for p in found])
    out["retrieve pixel"] = pixels(test, [p.map for p in found])
    return out


# --- runs -------------------------------------------------------------------------------------------------------------


def run(variant: str, category: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant, on all categories or on one, and judge it."""
    data = pictures(seed, args.train)
    steps = args.steps if category == "all" else round(args.steps / len(CATEGORIES))
    detector = PNPT(
        image_size=SIZE, preset="small", steps=steps, batch_size=8, seed=seed, device="cpu", **VARIANTS[variant]
    )  # fmt: skip
    began = time.process_time()
    detector.fit([s for s in data.train if category in ("all", s.category)])
    seconds = time.process_time() - began
    if category == "all":
        return {**figures(detector, data), "seconds": seconds}
    own = [s for s in data.test if s.category == category]
    seen = judged(detector, own)
    return {
        "map image": over_categories(own, seen["scores"]["map"]),
        "map pixel": pixels(own, seen["maps"]["map"]),
        "seconds": seconds,
    }


def baseline(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Methods that are not PNPT, one model for all categories, or for each."""
    data = pictures(seed, args.train)
    if name == "mean feature of the category":
        return mean_feature(data)
    predictions: dict[str, Any] = {}
    for group in [CATEGORIES] if name == "patchcore, one model" else [(c,) for c in CATEGORIES]:
        detector = al.create("patchcore", image_size=SIZE, seed=seed)
        detector.fit([s for s in data.train if s.category in group])
        predictions |= {p.id: p for p in detector.predict([s for s in data.test if s.category in group])}
    ordered = [predictions[s.id] for s in data.test]
    return judged_figures(data.test, [p.score for p in ordered], [p.map for p in ordered])


def mean_feature(data: Pictures) -> dict[str, Any]:
    """1 - cosine to the mean feature of each place over the good pictures of the category."""
    probe = PNPT(image_size=SIZE, device="cpu")
    net, scores, maps = network(probe), [], []
    import torch

    means = {c: [torch.as_tensor(f).mean(0, keepdim=True)
                 for f in net(images_of([s for s in data.train if s.category == c]))] for c in CATEGORIES}  # fmt: skip
    for s in data.test:
        F = [torch.as_tensor(f) for f in net(images_of([s]))]
        found = probe.anomaly_map(F, means[s.category])
        scores.append(float(probe.image_scores(found)[0]))
        maps.append(to_numpy(found)[0])
    return judged_figures(data.test, scores, maps)


def judged_figures(test: list[Sample], scores: list[float], maps: list[np.ndarray]) -> dict[str, Any]:
    return {
        "map image": over_categories(test, scores),
        "map pixel": pixels(test, maps),
        "map pixel swap": pixels(test, maps, ("swap",)),
    }


BASELINES = ("patchcore, one model", "patchcore, one for each category", "mean feature of the category")


def jobs(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(variant, category or "all", seed), what says most first."""
    seeds = range(args.seeds)
    found = [(v, "all", seed) for v in BASELINES for seed in seeds]
    found += [(v, "all", seed) for seed in seeds for v in args.variants if v in SINGLE]
    found += [(v, "all", seed) for seed in seeds for v in args.variants if v not in SINGLE]
    return found + [(v, c, seed) for seed in seeds for v in args.variants if v in SINGLE for c in CATEGORIES]


def spread(values: list[float], digits: int = 3) -> str:
    mean, low, high = (f"{v:.{digits}f}" for v in (np.mean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/pnpt_ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of a model of all categories")
    parser.add_argument("--train", type=int, default=40, help="good pictures of each category to learn from")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(cores())
    args.work.mkdir(parents=True, exist_ok=True)
    lines = args.work / f"figures-{args.steps}-{args.train}.jsonl"
    done: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in lines.read_text(encoding="utf-8").splitlines() if lines.exists() else ():
        row = json.loads(line)
        done[row["variant"], row["category"], row["seed"]] = row
    wanted = jobs(args)
    for at, (variant, category, seed) in enumerate(wanted, 1):
        if (variant, category, seed) not in done and not args.tables:
            began = time.monotonic()
            made = baseline(variant, seed, args) if variant in BASELINES else run(variant, category, seed, args)
            row = {"variant": variant, "category": category, "seed": seed, **made}
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            done[variant, category, seed] = row
            told = f"image {made['map image']:.3f}, pixel {made['map pixel']:.3f}, {time.monotonic() - began:.0f} s"
            print(f"{at}/{len(wanted)} {variant}, {category}, seed {seed}: {told}", flush=True)
    tables([done[job] for job in wanted if job in done], args)


def tables(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    def rows_of(variant: str, category: str = "all") -> list[dict[str, Any]]:
        return [r for r in rows if r["variant"] == variant and r["category"] == category]

    def of(variant: str, name: str) -> list[float]:
        return [r[name] for r in rows_of(variant) if name in r]

    def cell(values: list[float]) -> str:
        return spread(values) if values else "-"

    shown = [v for v in (*args.variants, *BASELINES) if rows_of(v)]
    heads = ("seeds", "image AUROC", "pixel AUROC", "pixel AUROC, swap", "margin R^P", "margin R^S", "loss")
    names = ("map image", "map pixel", "map pixel swap", "margin R_P", "margin R_S", "loss")
    print()
    table(("one model of four categories", *heads),
          [(v, len(rows_of(v)), *(cell(of(v, n)) for n in names)) for v in shown])  # fmt: skip
    streams = ("full", "without alignment", "learnable pool")
    table(("streams alone", "pixel m^P", "pixel m^S", "swap m^P", "swap m^S"),
          [(v, *(cell(of(v, n)) for n in ("m_P pixel", "m_S pixel", "m_P pixel swap", "m_S pixel swap")))
           for v in streams if rows_of(v)])  # fmt: skip
    if rows_of("full"):
        checks = [k for k in rows_of("full")[0] if k.startswith(("wrong", "self", "retriev"))]
        table(("full, prompts", "value"), [(k, cell(of("full", k))) for k in checks])
    cost = []
    for v in SINGLE:
        found = {c: {r["seed"]: r["map image"] for r in rows_of(v, c)} for c in (*CATEGORIES, "all")}
        seeds = sorted(set.intersection(*(set(f) for f in found.values())))
        alone = [float(np.mean([found[c][seed] for c in CATEGORIES])) for seed in seeds]
        together = [found["all"][seed] for seed in seeds]
        drop = [one - all_ for one, all_ in zip(alone, together, strict=True)]
        cost.append((v, cell(alone), cell(together), cell(drop)))
    table(("image AUROC", "four models", "one model", "drop"), cost)


if __name__ == "__main__":
    main()
