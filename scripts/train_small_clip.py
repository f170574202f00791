"""Train a small CLIP from random weights on drawn pictures with captions: something to test language methods with.

    python scripts/train_small_clip.py small_clip.safetensors              # about 4 minutes of one core
    anomalens inspect NEW --method april-gan --backbone clip:@small_clip.safetensors

It sees the categories CATEGORIES and, of the defects, KINDS alone, so that other categories and kinds can be held out; both
lists stand in the metadata of the file. It knows some forty words and must not be mistaken for a CLIP with language.

A caption calls a thing by its category or just "surface" and says whether it is damaged, mostly by what: "a photo of a
cloth with a stain". Every caption of a batch is true or false of every picture of it, and of every patch: a patch beside
the stain shows a flawless cloth. The loss is the sigmoid one of Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), over
all pairs of captions and pictures and, so that a few thousand pictures are enough, of captions and patches.

Batch t depends on (seed, t) alone; an interrupted run goes on where its checkpoint lies (--work).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from anomalens.backbones._clip import Clip, random_weights
from anomalens.backbones.clip import Shape, tokenise
from anomalens.datasets.procedural import Procedural
from anomalens.images import resize, to_float
from anomalens.parts.prompts import ABNORMAL_BROKEN, NORMAL, unit
from anomalens.parts.train import Group, Recipe, Shuffled, train
from anomalens.types import Sample

CATEGORIES = ("cap", "cloth", "cookie", "gear", "metal", "pill", "terrazzo", "tiles")
KINDS = ("contamination", "crack", "dent", "stain", "thread")
GENERIC = ("object", "surface")  # what a picture of any category may be called
TEMPLATES = ("{}", "a photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.")
GOOD, DAMAGED, ANY = len(KINDS), len(KINDS) + 1, len(CATEGORIES)  # of no kind; of whatever kind; of whatever category
DRAWN = 160  # pixels per side of the drawn pictures, of which pieces are shown
CLEAN, FAULTY = 0.02, 0.25  # covered by the defect up to and from which a patch counts as good and as damaged

SHAPE = Shape(embed=128, size=96, patch=8, width=128, layers=4, heads=2, text_width=128, text_layers=2, text_heads=2)


def captions() -> list[tuple[str, int, int]]:
    """Every caption there is, without templates: text, category, kind."""
    made = []
    for category, name in [*enumerate(CATEGORIES), *((ANY, name) for name in GENERIC)]:
        made += [(state.format(name), category, GOOD) for state in NORMAL[1:]]
        made += [(state.format(name), category, DAMAGED) for state in ABNORMAL_BROKEN]
        made += [(f"{name} with a {word}", category, kind) for kind, word in enumerate(KINDS)]
    return made


def true_of(said: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(..., captions) bool: whether captions (n, 2) are true of what is shown (..., 2); both are category and kind."""
    category, kind = (shown[..., None, i] for i in (0, 1))
    same = (said[:, 1] == kind) | ((said[:, 1] == DAMAGED) & (kind != GOOD))
    return same & ((said[:, 0] == ANY) | (said[:, 0] == category))


def pictures(good: int, bad: int, size: int, seed: int) -> list[Sample]:
    """Drawn pictures of the categories and kinds to learn from: `good` and `bad` for each category."""
    found = []
    for category in CATEGORIES:
        kinds = Procedural(category).kinds
        share = len([k for k in kinds if k in KINDS]) / len(kinds)  # kinds take turns
        drawn = Procedural(category, size=size, seed=seed, train_count=good, good_count=0, bad_count=round(bad / share))
        found += drawn.train() + [s for s in drawn.test() if s.defect in KINDS]
    return found


def decode(sample: Sample) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Picture (D, D, 3) uint8, mask (D, D) bool, category, kind."""
    picture = sample.image()
    mask = sample.mask.read() if sample.mask else np.zeros(picture.shape[:2], bool)
    return picture, mask, CATEGORIES.index(sample.category), KINDS.index(sample.defect) if sample.mask else GOOD


def shown(picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A piece of a picture, turned, mirrored and in other colours, (S, S, 3) float32, and its mask (S, S), 0 to 1.

    A defect stays in sight. Eight categories must do for all that is ever looked at, so that little is left as it is.
    """
    side = len(picture)
    cut = int(rng.integers(side // 2, side + 1))
    middle = np.mean(np.nonzero(mask), axis=1) if mask.any() else rng.uniform(0, side, 2)
    low, high = np.maximum(0, middle + cut // 8 - cut), np.minimum(side - cut, middle - cut // 8)
    y, x = np.clip(rng.uniform(np.minimum(low, high), high), 0, side - cut).astype(int)
    turns, way = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))
    size = (SHAPE.size, SHAPE.size)
    piece, hidden = (np.rot90(a[y : y + cut, x : x + cut], turns)[:, ::way] for a in (picture, mask))
    seen = to_float(resize(np.ascontiguousarray(piece), size))
    cover = resize(np.repeat(np.uint8(255) * hidden[..., None], 3, axis=2), size)[..., 0] / np.float32(255)
    if rng.random() < 0.4:
        seen = seen[..., rng.permutation(3)]
    if rng.random() < 0.2:
        seen = np.repeat(seen.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.2:
        seen = 1 - seen
    seen = (seen - seen.mean()) * rng.uniform(0.6, 1.3) + np.clip(seen.mean() + rng.uniform(-0.15, 0.15), 0.2, 0.8)
    return np.clip(seen * rng.uniform(0.9, 1.1, 3), 0, 1).astype(np.float32), cover


def error(logits: torch.Tensor, true: np.ndarray) -> torch.Tensor:
    """Mean over rows of the sigmoid loss, summed over captions."""
    signs = torch.from_numpy(2.0 * true - 1).float()
    return -F.logsigmoid(signs * logits).sum(dim=-1).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the weights go, .safetensors")
    parser.add_argument("--work", type=Path, help="folder of checkpoints")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--good", type=int, default=100, help="good pictures of each category")
    parser.add_argument("--bad", type=int, default=200, help="damaged pictures of each category")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    args = parser.parse_args()

    known = captions()
    meaning = np.array([caption[1:] for caption in known])
    ids = tokenise([t.format(text) for t in TEMPLATES for text, _, _ in known])
    ids = ids[:, : int(ids.argmax(dim=1).max()) + 1]
    items = [decode(s) for s in pictures(args.good, args.bad, DRAWN, args.seed)]
    clip = Clip(SHAPE)
    random_weights(clip, args.seed)
    scale, bias = torch.tensor(2.3, requires_grad=True), torch.tensor(-2.0, requires_grad=True)  # exp(scale) = 10
    clip.visual.requires_grad_(True)
    words = {k: p.requires_grad_() for k, p in clip.named_parameters() if not k.startswith("visual.")}

    def load(item: tuple, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Picture (3, S, S), category and kind, the cover of its patches (N,), and a caption that is true of it."""
        picture, mask, category, kind = item
        seen, cover = shown(picture, mask, rng)
        what = np.array((category, kind))
        patches = cover.reshape(SHAPE.grid, SHAPE.patch, SHAPE.grid, SHAPE.patch).mean(axis=(1, 3)).ravel()
        right = true_of(meaning, what)
        generic = right & (meaning[:, 0] == ANY)
        caption = rng.choice(np.flatnonzero(generic if rng.random() < 0.5 else right))
        return np.moveaxis(seen, 2, 0), what, patches, int(caption + len(known) * rng.integers(len(TEMPLATES)))

    def loss(batch: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, dict[str, float]]:
        images, what, cover, chosen = batch
        said = meaning[chosen % len(known)]
        sentences = unit(clip.text(ids[chosen]).float())
        tokens, _ = clip.vision(clip.embed(clip.normalise(images)))
        features = unit((clip.visual.ln_post(tokens) @ clip.visual.proj).float())
        logits = scale.exp() * features @ sentences.T + bias  # (B, 1 + N, captions)
        here = np.repeat(what[:, None], cover.shape[1], axis=1)  # what each patch shows
        here[..., 1] = np.where(cover < FAULTY, GOOD, here[..., 1])
        whole, faulty, clean = logits[:, 0], cover >= FAULTY, cover <= CLEAN
        terms = [error(logits[:, 0], true_of(said, what))]
        terms += [error(logits[:, 1:][on], true_of(said, here[on])) for on in (faulty, clean) if on.any()]
        right = ((whole.detach() > 0).numpy() == true_of(said, what)).mean()
        return torch.stack(terms).sum(), {"right": float(right)} | {
            f"loss{i}": float(t.detach()) for i, t in enumerate(terms)
        }

    began = time.monotonic()

    def report(step: int, total: int, figures: dict[str, float]) -> None:
        if step % 25 == 0:
            told = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
            print(f"{time.monotonic() - began:6.0f} s  {step}/{total}  {told}", flush=True)

    recipe = Recipe(
        steps=args.steps, optimiser="adamw", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, warmup=50, schedule="cosine",
        clip=1.0, seed=args.seed, precision=args.precision, checkpoint_minutes=2,
    )  # fmt: skip
    groups = [Group(clip.visual), Group(words), Group({"scale": scale, "bias": bias}, weight_decay=0.0)]
    data = f"small clip, {len(items)} pictures, batches of {args.batch}"
    batches = Shuffled(items, args.batch, load, args.seed, drop_last=True)
    train(loss, groups, batches, recipe, folder=args.work, data=data, report=report)
    about = {"categories": CATEGORIES, "kinds": KINDS, "seed": args.seed, "steps": args.steps, "batch": args.batch}
    tensors = {name: tensor.detach().contiguous() for name, tensor in clip.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out, metadata={"small clip": json.dumps(about)})
    print(f"{args.out}: {sum(t.numel() for t in tensors.values()):,} parameters, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
