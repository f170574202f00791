"""Train the embedded `tiny` network: its own pictures in, a teacher's features out, two ONNX files at the end.

    python scripts/train_tiny.py --teacher resnet18.safetensors --work runs/tiny --steps 12000

Batch t is a function of (canvases, seed, t) alone, so an interrupted run goes on where its last checkpoint lies: start
it again with the same arguments; a finished run is exported again. Beside the checkpoint lie log.csv, curves.png,
tiny.onnx and its int8 version tiny-int8.onnx. The ledger of the runs is docs/tiny.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from anomalens.backbones import tiny
from anomalens.files import write_atomic

# ---------------------------------------------------------------------------------------------------------------------
# Pictures. A field is (S, S) float32 in [0, 1], a picture (S, S, 3) float32 in [0, 1].


def draw_canvas(seed: int, index: int, side: int) -> np.ndarray:
    """(side, side, 3) uint8, the same for the same arguments."""
    rng = np.random.default_rng((seed, index))
    return _bytes(finish(rng, scene(rng, side)))


def draw_pool(seed: int, count: int, side: int, workers: int) -> np.ndarray:
    """(count, side, side, 3) uint8, drawn by `workers` processes; 0 draws in this one."""
    draw = partial(draw_canvas, seed, side=side)
    if not workers:
        return np.stack([draw(index) for index in range(count)])
    with ProcessPoolExecutor(workers) as processes:
        return np.stack(list(processes.map(draw, range(count), chunksize=16)))


def compose(pool: np.ndarray, seed: int, index: int, count: int, size: int) -> np.ndarray:
    """Batch `index`: (count, size, size, 3) float32 in [0, 1], the same for the same arguments.

    Crops of the canvases at random scale, turned and mirrored; half of them are two crops put together along the light
    and dark of a third, so that few canvases make many pictures.
    """
    rng = np.random.default_rng((seed, index))

    def crop() -> np.ndarray:
        canvas = Image.fromarray(pool[rng.integers(len(pool))])
        cut = int(rng.integers(size * 2 // 3, pool.shape[1] + 1))
        x, y = rng.integers(0, pool.shape[1] - cut + 1, 2).tolist()
        picture = np.asarray(canvas.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + cut, y + cut)))
        picture = np.rot90(picture, int(rng.integers(4)))
        return picture[:, ::-1] if rng.random() < 0.5 else picture

    batch = np.empty((count, size, size, 3), np.float32)
    for place in range(count):
        picture = crop() / np.float32(255)
        if rng.random() < 0.5:
            guide = crop()[..., 1].astype(np.float32)
            share = np.clip((guide - np.median(guide)) * (2.0 ** rng.uniform(-7, -2)) + 0.5, 0, 1)[..., None]
            picture = picture * share + (crop() / np.float32(255)) * (1 - share)
        if rng.random() < 0.3:
            picture = picture[..., rng.permutation(3)]
        if rng.random() < 0.2:
            picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
        if rng.random() < 0.5:
            gain = np.float32(rng.uniform(0.3, 1.3))
            picture = (picture - picture.mean()) * gain + np.float32(rng.uniform(0.25, 0.75))
        batch[place] = picture
    return np.clip(batch, 0, 1)


def scene(rng: np.random.Generator, side: int) -> np.ndarray:
    """A texture, leaves, lines, or objects on a ground."""
    kind = rng.random()
    if kind < 0.3:
        return texture(rng, side)
    if kind < 0.5:
        return leaves(rng, side)
    if kind < 0.65:
        return lines(rng, side)
    return objects(rng, side)


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    fields = (fractal, gratings, checks, cells, spots, tiles)
    field = fields[rng.integers(len(fields))](rng, side)
    if rng.random() < 0.3:  # two textures, one modulating the other
        other = fields[rng.integers(len(fields))](rng, side)
        share = rng.uniform(0.2, 0.8)
        field = field * other if rng.random() < 0.3 else share * field + (1 - share) * other
    if rng.random() < 0.2:  # three unrelated channels instead of a palette
        rest = [0.7 * field + 0.3 * fractal(rng, side) for _ in range(2)]
        return np.stack([field, *rest], axis=2)
    return paint(rng, field)


def fractal(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise of spectrum 1 / f^slope, stretched along a random direction (grain, brushed metal, clouds)."""
    slope = rng.uniform(0.3, 2.6)
    stretch, angle = 2.0 ** rng.uniform(0, 3 if rng.random() < 0.4 else 0.5), rng.uniform(0, np.pi)
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    frequency = np.hypot(along * stretch, across)
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    noise = np.fft.irfft2(spectrum * frequency**-slope, (side, side))
    return unit(noise)


def gratings(rng: np.random.Generator, side: int) -> np.ndarray:
    """Sums of sine, square or saw waves, some bent by noise."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    bend = 0.0
    if rng.random() < 0.5:
        bend = (fractal(rng, side) - 0.5) * rng.uniform(0, 12)
    total = np.zeros((side, side), np.float32)
    for _ in range(rng.integers(1, 4)):
        period, angle = 3 * 2.0 ** rng.uniform(0, 4.5), rng.uniform(0, np.pi)
        phase = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period) + bend + rng.uniform(0, 6)
        wave = np.sin(phase)
        shape = rng.integers(3)
        total += np.clip(wave * 6, -1, 1) if shape == 1 else (phase / np.pi) % 2 - 1 if shape == 2 else wave
    return unit(total)


def checks(rng: np.random.Generator, side: int) -> np.ndarray:
    """Chessboards, bricks and meshes, turned."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle = rng.choice([0, rng.uniform(0, np.pi)])
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    width, height = 4 * 2.0 ** rng.uniform(0, 3.2, 2)
    row = np.floor(v / height)
    column = np.floor(u / width + (row % 2) * rng.choice([0, 0.5]))
    inside = np.minimum((u / width) % 1, (v / height) % 1)
    mortar = (inside > rng.uniform(0.03, 0.3)).astype(np.float32)
    shade = rng.random((7, 11)).astype(np.float32)[row.astype(int) % 7, column.astype(int) % 11]
    board = ((row + column) % 2).astype(np.float32)
    return np.clip([board, mortar, mortar * shade, shade][rng.integers(4)], 0, 1)


def cells(rng: np.random.Generator, side: int) -> np.ndarray:
    """Voronoi cells: flat, cracked at the borders, or cones."""
    points = rng.uniform(0, side, (int(rng.integers(8, 60)), 2)).astype(np.float32)
    axis = np.arange(side, dtype=np.float32)
    squared = (axis[None, :, None] - points[:, :1, None]) ** 2 + (axis[None, None, :] - points[:, 1:, None]) ** 2
    nearest = squared.argmin(0)
    kind = rng.integers(3)
    if kind == 0:
        return rng.random(len(points)).astype(np.float32)[nearest]
    two = np.sqrt(np.partition(squared, 1, axis=0)[:2])
    return np.clip((two[1] - two[0]) / rng.uniform(2, 8), 0, 1) if kind == 1 else unit(two[0])


def spots(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise cut at a level: islands, veins, rust."""
    field, level = fractal(rng, side), rng.uniform(0.25, 0.75)
    if rng.random() < 0.3:
        field = np.abs(field - 0.5) * 2  # veins along the middle level
    return np.clip((field - level) * rng.uniform(5, 60) + 0.5, 0, 1)


def tiles(rng: np.random.Generator, side: int) -> np.ndarray:
    """One small motif repeated, turned: cloth, grids, prints."""
    period = int(rng.integers(6, 40))
    motif = fractal(rng, period) if rng.random() < 0.5 else _motif(rng, period)
    wide = np.tile(motif, (2 * side // period + 1,) * 2)[: 2 * side, : 2 * side]
    image = Image.fromarray(wide).rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    x = side // 2
    return np.asarray(image)[x : x + side, x : x + side]


def _motif(rng: np.random.Generator, period: int) -> np.ndarray:
    image = Image.new("F", (period, period), rng.random())
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        _shape(rng, draw, rng.uniform(0, period, 2), rng.uniform(0.1, 0.5) * period, rng.random())
    return np.asarray(image)


def leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Dead leaves: shapes of power-law size covering each other, flat or textured as a whole."""
    image = Image.fromarray(_bytes(paint(rng, fractal(rng, side))))
    draw = ImageDraw.Draw(image)
    colours = palette(rng, 12)
    smallest = rng.uniform(2, 10)
    for _ in range(int(rng.integers(20, 250))):
        radius = min(smallest * rng.pareto(1.5) + smallest, side / 3)
        colour = colours[rng.integers(12)] + rng.normal(0, 0.04, 3)
        _shape(rng, draw, rng.uniform(0, side, 2), radius, tuple(_bytes(colour).tolist()))
    picture = _floats(image)
    if rng.random() < 0.6:
        picture = picture + (texture(rng, side) - 0.5) * rng.uniform(0.05, 0.4)
    return np.clip(picture, 0, 1)


def lines(rng: np.random.Generator, side: int) -> np.ndarray:
    """Scratches, wires, scribbles, printed traces with pads."""
    ground = texture(rng, side) if rng.random() < 0.6 else np.broadcast_to(palette(rng, 1)[0], (side, side, 3))
    image = Image.fromarray(_bytes(ground))
    draw = ImageDraw.Draw(image)
    colours = [tuple(_bytes(c).tolist()) for c in palette(rng, int(rng.integers(1, 5)))]
    traces, width = rng.random() < 0.4, int(rng.integers(1, 7))
    for _ in range(int(rng.integers(2, 50))):
        colour = colours[rng.integers(len(colours))]
        start = rng.uniform(0, side, 2)
        if traces:  # right angles and diagonals only
            turns = rng.integers(8, size=rng.integers(1, 5)) * (np.pi / 4)
        else:
            turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, rng.uniform(0, 0.8), rng.integers(1, 12)))
        steps = rng.uniform(0.05, 0.4) * side * np.stack([np.cos(turns), np.sin(turns)], 1)
        path = np.concatenate([start[None], start + np.cumsum(steps, 0)])
        stroke = width if traces else int(rng.integers(1, 5))
        draw.line([tuple(p) for p in path.tolist()], fill=colour, width=stroke, joint="curve" if traces else None)
        if traces:
            _shape(rng, draw, path[-1], rng.uniform(1, 3) * width, colour)
    return _floats(image)


def objects(rng: np.random.Generator, side: int) -> np.ndarray:
    """Textured bodies with soft borders and shading on a plain or textured ground."""
    plain = rng.random() < 0.6
    picture = np.broadcast_to(palette(rng, 1)[0], (side, side, 3)) if plain else texture(rng, side)
    if plain and rng.random() < 0.5:
        picture = picture + (fractal(rng, side)[..., None] - 0.5) * rng.uniform(0, 0.15)
    skin = (texture, leaves, lines)[rng.choice(3, p=[0.7, 0.15, 0.15])](rng, side)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    for _ in range(rng.choice([1, 2, 6], p=[0.5, 0.3, 0.2])):
        centre, radius = rng.uniform(0.15, 0.85, 2), rng.uniform(0.1, 0.55)
        mask = blob(rng, side, centre * side, radius * side)[..., None]
        dx, dy = x - centre[0], y - centre[1]
        light = rng.uniform(-1, 1, 2)
        shade = 1 - rng.uniform(0, 0.6) * (dx**2 + dy**2) / radius**2
        shade = shade + rng.uniform(0, 1.2) * (dx * light[0] + dy * light[1])
        body = np.roll(skin, rng.integers(0, side, 2), (0, 1)) * np.clip(shade, 0.05, 1.5)[..., None]
        if rng.random() < 0.3:
            body = body[..., rng.permutation(3)]
        picture = picture * (1 - mask) + body * mask
    return np.clip(picture, 0, 1)


def blob(rng: np.random.Generator, side: int, centre: np.ndarray, radius: float) -> np.ndarray:
    """Soft mask of a closed curve r(angle) = radius * (1 + a few harmonics), stretched."""
    angle = np.linspace(0, 2 * np.pi, 72)
    r = np.full_like(angle, radius)
    for k in range(1, 7):
        r += radius * rng.normal(0, 0.25 * rng.random() / k) * np.cos(k * angle + rng.uniform(0, 6))
    turn, squash = rng.uniform(0, np.pi), rng.uniform(0.4, 1)
    u, v = r * np.cos(angle), r * np.sin(angle) * squash
    outline = np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], 1) + centre
    image = Image.new("L", (side, side), 0)
    ImageDraw.Draw(image).polygon([tuple(p) for p in outline.tolist()], fill=255)
    return _floats(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5))))


def _shape(rng: np.random.Generator, draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: Any) -> None:
    """An ellipse, a rectangle or a polygon."""
    kind, squash = rng.integers(3), rng.uniform(0.3, 1)
    x, y = (float(c) for c in centre)
    box = (x - radius, y - radius * squash, x + radius, y + radius * squash)
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.rectangle(box, fill=colour)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        draw.polygon([(x + radius * math.cos(a), y + radius * squash * math.sin(a)) for a in angles], fill=colour)


def palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) related colours: around a centre, with a spread that is large for some pictures, small for others."""
    return np.clip(rng.random(3) + rng.uniform(0.05, 0.6) * rng.standard_normal((count, 3)), 0, 1)


def paint(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
    """Colours along a path of 2 to 5 palette colours."""
    colours = palette(rng, int(rng.integers(2, 6)))
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(field, stops, colours[:, c]) for c in range(3)], axis=2).astype(np.float32)


def finish(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """What cameras do: grey, gamma, contrast, tint, vignette, blur, noise."""
    if rng.random() < 0.4:
        picture = np.repeat(picture @ rng.dirichlet((2, 2, 2))[:, None], 3, axis=2)
    picture = np.clip(picture, 0, 1) ** 2.0 ** rng.uniform(-1, 1)
    if rng.random() < 0.5:
        contrast = rng.uniform(0.15, 1)
        picture = (picture - picture.mean()) * contrast + rng.uniform(0.5 * contrast, 1 - 0.5 * contrast)
    if rng.random() < 0.3:
        picture = picture * rng.uniform(0.7, 1.2, 3)
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, len(picture))
        vertical, horizontal = rng.uniform(-0.4, 0.4, 2)
        picture = picture * (1 + vertical * ramp[:, None] + horizontal * ramp[None])[..., None]
    if rng.random() < 0.3:
        blurred = Image.fromarray(_bytes(picture)).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 2)))
        picture = _floats(blurred)
    if rng.random() < 0.4:
        channels = rng.choice([1, 3])
        picture = picture + rng.normal(0, rng.uniform(0.005, 0.08), (*picture.shape[:2], channels))
    return np.clip(picture, 0, 1)


def unit(field: np.ndarray) -> np.ndarray:
    low, high = np.quantile(field[::2, ::2], (0.005, 0.995))
    return np.clip((field - low) / (high - low + 1e-9), 0, 1).astype(np.float32)


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


# ---------------------------------------------------------------------------------------------------------------------
# Networks


TEACHER_CHANNELS = {4: 64, 8: 128, 16: 256}  # ResNet18 layer1, layer2, layer3
LEVEL_WEIGHTS = {4: 0.5, 8: 1.0, 16: 1.0}
HELD_OUT_SEED = 1_000_000


def load_teacher(path: Path) -> Any:
    """ResNet18 up to layer3, frozen: a function of normalised images giving [stride 4, 8, 16]."""
    import timm
    import torch
    from safetensors.torch import load_file
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 2, 3))
    wanted = network.state_dict().keys()
    network.load_state_dict({name: value for name, value in load_file(path).items() if name in wanted})
    network.eval().requires_grad_(False)
    for module in list(network.modules()):  # batch norm folded in: a quarter less work
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            if hasattr(module, norm):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, torch.nn.Identity())
    return network


def make_student() -> Any:
    """The layers of `tiny.LAYERS` with batch norm, and for each output a 1x1 head that predicts the teacher."""
    import torch
    from torch import nn

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.norms = nn.ModuleDict(), nn.ModuleDict()
            for name, (inputs, outputs, kernel, stride) in tiny.LAYERS.items():
                self.layers[name] = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
                if not name.startswith("stride"):
                    self.norms[name] = nn.BatchNorm2d(outputs)
            self.heads = nn.ModuleDict(
                {f"stride{s}": nn.Conv2d(tiny.CHANNELS[s], c, 1) for s, c in TEACHER_CHANNELS.items()}
            )
            mean, std = torch.tensor(tiny.CARD.mean), torch.tensor(tiny.CARD.std)
            self.register_buffer("mean", mean[:, None, None], persistent=False)  # no part of the average
            self.register_buffer("std", std[:, None, None], persistent=False)

        def normalise(self, images: Any) -> Any:
            return (images - self.mean) / self.std

        def conv(self, name: str, x: Any) -> Any:
            x = self.layers[name](x)
            return self.norms[name](x) if name in self.norms else x

        def relu(self, x: Any) -> Any:
            return torch.relu(x)

        def add(self, x: Any, y: Any) -> Any:
            return x + y

        def forward(self, images: Any) -> dict[int, Any]:
            return tiny.forward(self, images)

        def predict(self, images: Any) -> dict[int, Any]:
            """The teacher's features, each channel in units of its standard deviation."""
            return {s: self.heads[f"stride{s}"](x) for s, x in self(images).items()}

    return Student()


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    student, teacher = make_student(), load_teacher(args.teacher)
    student = student.to(memory_format=torch.channels_last)
    half = torch.bfloat16 if args.bf16 else torch.float32
    teacher = teacher.to(dtype=half, memory_format=torch.channels_last)

    def targets(images: Any) -> dict[int, Any]:
        with torch.no_grad():
            maps = teacher(student.normalise(images).to(half))
        return {s: m.float() for s, m in zip(TEACHER_CHANNELS, maps, strict=True)}

    def errors(network: Any, images: Any, wanted: dict[int, Any]) -> dict[int, Any]:
        """Squared error by level; 1 is what a constant guess gets."""
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            guesses = network.predict(images)
        return {s: ((guesses[s].float() - (wanted[s] - means[s]) / stds[s]) ** 2).mean() for s in wanted}

    def total(levels: dict[int, Any]) -> Any:
        return sum(LEVEL_WEIGHTS[s] * e for s, e in levels.items())

    # The held-out canvases, the same for every seed, also give the unit of each teacher channel.
    side = args.size * 3 // 2
    pool_file = args.work / "pool.npy"
    if not pool_file.exists():
        drawn = io.BytesIO()
        np.save(drawn, draw_pool(args.seed, args.canvases, side, args.workers))
        write_atomic(pool_file, drawn.getvalue())
    pool = np.load(pool_file, mmap_mode="r")
    held_pool = draw_pool(HELD_OUT_SEED, args.held_out, side, args.workers)
    held = tensor(compose(held_pool, 0, 0, 2 * args.held_out, args.size))
    held_wanted = targets(held)
    means = {s: w.mean((0, 2, 3), keepdim=True) for s, w in held_wanted.items()}
    stds = {s: w.std((0, 2, 3), keepdim=True) + 1e-3 for s, w in held_wanted.items()}

    weights = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": args.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, fused=True)
    average = make_student()
    average.load_state_dict(student.state_dict())
    average.eval()

    state, log = args.work / "state.safetensors", args.work / "log.csv"
    rows: list[dict[str, float]] = []
    first = 0
    if args.start and not state.exists():
        load_networks(args.start, student, average)
    if state.exists():
        first = load_state(state, student, average, optimizer, args)
        with log.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        rows = [row for row in rows if row["step"] <= first]

    begin, running = time.perf_counter(), []
    for step in range(first + 1, (args.pause or args.steps) + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(args, step)
        student.train()
        images = tensor(compose(pool, args.seed, step, args.batch, args.size))
        loss = total(errors(student, images, targets(images)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        blend(average, student, min(0.998, (1 + step) / (10 + step)))
        running.append(float(loss.detach()))
        if step % args.every == 0 or step in (args.steps, args.pause):
            with torch.no_grad():
                judged = {s: float(e) for s, e in errors(average, held, held_wanted).items()}
            row = {"step": step, "rate": rate(args, step), "loss": float(np.mean(running)), "held_out": total(judged)}
            row |= {f"held_out_{s}": e for s, e in judged.items()}
            row["pictures_per_second"] = (step - first) * args.batch / (time.perf_counter() - begin)
            rows.append(row)
            running = []
            write_log(log, rows)
            save_state(state, student, average, optimizer, args, step)
            print(json.dumps({k: round(v, 5) for k, v in row.items()}), flush=True)
    draw_curves(args.work / "curves.png", rows)
    if args.pause and args.pause < args.steps:
        return
    units = {s: (means[s].flatten(), stds[s].flatten()) for s in means}
    arrays = fold(average, units)
    write_atomic(args.work / "tiny.onnx", onnx_bytes(arrays))
    difference = compare(args.work / "tiny.onnx", average, arrays, held[:8])
    print(f"tiny.onnx differs from the trained network by at most {difference:.1e}", flush=True)
    if difference > 1e-4:
        raise SystemExit("the exported file does not agree with the trained network")
    write_atomic(args.work / "tiny-int8.onnx", int8_bytes(onnx_bytes(arrays), held.numpy()))


def rate(args: argparse.Namespace, step: int) -> float:
    """Linear warm-up over a twentieth of the run, then half a cosine to zero."""
    warm = max(1, args.steps // 20)
    if step < warm:
        return args.rate * step / warm
    return args.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, args.steps - warm)))


def tensor(pictures: np.ndarray) -> Any:
    """(B, H, W, 3) -> (B, 3, H, W) in channels-last memory."""
    import torch

    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def blend(average: Any, student: Any, keep: float) -> None:
    """Moving average of weights and batch norm statistics."""
    import torch

    pairs = zip(average.state_dict().values(), student.state_dict().values(), strict=True)
    old, new = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(old, new, 1 - keep)


def save_state(path: Path, student: Any, average: Any, optimizer: Any, args: argparse.Namespace, step: int) -> None:
    """Everything needed to go on, as plain named arrays."""
    from safetensors.torch import save

    arrays = {f"student.{k}": v for k, v in student.state_dict().items()}
    arrays |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    arrays = {k: v.contiguous() for k, v in arrays.items()}
    write_atomic(path, save(arrays, {"step": str(step), "settings": settings(args)}))


def load_networks(path: Path, student: Any, average: Any) -> dict[str, Any]:
    """Fill both from a checkpoint; returns all arrays of it."""
    from safetensors.torch import load_file

    arrays = load_file(path)
    student.load_state_dict(part(arrays, "student."))
    average.load_state_dict(part(arrays, "average."))
    return arrays


def load_state(path: Path, student: Any, average: Any, optimizer: Any, args: argparse.Namespace) -> int:
    """Fill the three from a checkpoint of the same run; returns its step."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        notes = file.metadata()
    if notes["settings"] != settings(args):
        raise SystemExit(f"{path} was trained with {notes['settings']}, now {settings(args)}: give another --work.")
    arrays = load_networks(path, student, average)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for name, value in part(arrays, "optimizer.").items():
        index, kind = name.split(".")
        if value.ndim:  # the fused optimizer wants moments laid out in memory as their parameter is
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        moments.setdefault(int(index), {})[kind] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(notes["step"])


def part(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def settings(args: argparse.Namespace) -> str:
    """What makes two runs the same run."""
    names = ("seed", "steps", "batch", "size", "rate", "decay", "bf16", "canvases", "held_out")
    return json.dumps({name: getattr(args, name) for name in names})


def write_log(path: Path, rows: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def draw_curves(path: Path, rows: list[dict[str, float]], width: int = 640, height: int = 360) -> None:
    """Training loss (grey) and held-out errors (total black, strides 4, 8, 16 blue, green, red) over the steps."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    colours = {"loss": "grey", "held_out": "black", "held_out_4": "blue", "held_out_8": "green", "held_out_16": "red"}
    top = max(row[name] for row in rows for name in colours)
    last = max(row["step"] for row in rows)
    for tick in range(5):
        y = height - 20 - tick * (height - 30) / 4
        draw.line([(40, y), (width, y)], fill="lightgrey")
        draw.text((4, y - 6), f"{top * tick / 4:.2f}", fill="black")
    for place, (name, colour) in enumerate(colours.items()):
        points = [(40 + (width - 50) * r["step"] / last, height - 20 - (height - 30) * r[name] / top) for r in rows]
        draw.line(points, fill=colour, width=2)
        draw.text((60 + 110 * place, height - 14), name, fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# Export


def fold(network: Any, units: dict[int, Any]) -> dict[str, np.ndarray]:
    """Weights for `tiny.forward`: batch norm folded in, the heads turned into the metric of the outputs.

    The head of a level predicts teacher features as an affine map of rank d. Its left singular vectors are an
    orthonormal basis of those predictions, so the d output channels keep the distances between predicted features.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in tiny.LAYERS:
        kernel = network.layers[name].weight.detach().double().numpy()
        if name in network.norms:
            norm = network.norms[name]
            gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
            kernel = kernel * gain[:, None, None, None]
            bias = norm.bias.detach().double().numpy() - norm.running_mean.double().numpy() * gain
        else:
            head = network.heads[name]
            mean, std = (u.double().numpy() for u in units[int(name.removeprefix("stride"))])
            full = std[:, None] * (head.weight.detach().double().numpy()[:, :, 0, 0] @ kernel[:, :, 0, 0])
            offset = std * head.bias.detach().double().numpy() + mean
            basis = np.linalg.svd(full, full_matrices=False)[0][:, : len(kernel)]
            kernel, bias = (basis.T @ full)[:, :, None, None], basis.T @ offset
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = kernel.astype(np.float32), bias.astype(np.float32)
    arrays["mean"], arrays["std"] = network.mean.numpy(), network.std.numpy()
    return arrays


def onnx_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """The network as one ONNX file with free batch size, height and width."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    class Writer:
        def __init__(self) -> None:
            self.nodes: list[Any] = []

        def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
            output = output or f"x{len(self.nodes)}"
            self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
            return output

        def normalise(self, images: str) -> str:
            return self.node("Div", [self.node("Sub", [images, "mean"]), "std"])

        def conv(self, name: str, x: str) -> str:
            _, _, kernel, stride = tiny.LAYERS[name]
            shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
            return self.node("Conv", [x, f"{name}.weight", f"{name}.bias"], name, **shape)

        def relu(self, x: str) -> str:
            return self.node("Relu", [x])

        def add(self, x: str, y: str) -> str:
            return self.node("Add", [x, y])

    writer = Writer()
    outputs = tiny.forward(writer, "images")
    graph = helper.make_graph(
        writer.nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, ["batch", tiny.CHANNELS[s], f"height{s}", f"width{s}"])
            for s, o in outputs.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, producer_name="anomalens", opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # the oldest ONNX Runtime we accept reads it
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def int8_bytes(model: bytes, pictures: np.ndarray) -> bytes:
    """The network in int8: weights per output channel, activations between the extremes that these pictures reach.

    Weights have 7 bits, because x86 CPUs without VNNI add pairs of 8-bit products in 16 bits, which would saturate. The
    output convolutions stay float32: one scale for all would drown the small channels of their orthonormal basis.

    pictures: (N, 3, H, W) float32 in [0, 1].
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.split(pictures, range(8, len(pictures), 8)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": np.ascontiguousarray(batch)}

    proto = onnx.load_from_string(model)
    for node in proto.graph.node:
        node.name = node.output[0]  # nodes are left out by name
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            proto,
            target,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,  # signed ones run three times slower on x86
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[f"stride{s}" for s in tiny.CHANNELS],
        )
        return target.read_bytes()


def compare(path: Path, network: Any, arrays: dict[str, np.ndarray], images: Any) -> float:
    """Largest difference between the file in ONNX Runtime and the trained network, by its own outputs and heads.

    Both give the same distances, in different bases; so the outputs of the file are compared with the trained layers
    under the output convolution of the file.
    """
    import torch
    from torch.nn.functional import conv2d

    from anomalens.backbones._onnx import OnnxNetwork

    names = tuple(f"stride{s}" for s in tiny.CHANNELS)
    taps: dict[str, Any] = {}
    hooks = [network.layers[n].register_forward_pre_hook(lambda _, x, n=n: taps.update({n: x[0]})) for n in names]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    worst = 0.0
    for name, ours in zip(names, OnnxNetwork(path, names, threads=1)(images), strict=True):
        weight, bias = (torch.from_numpy(arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
        worst = max(worst, float((conv2d(taps[name], weight, bias) - torch.from_numpy(ours)).abs().max()))
    return worst


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="ResNet18 weights, safetensors, torchvision names")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint, log, curves and tiny.onnx")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=112, help="side of the pictures, pixels, a multiple of 16")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=0.02, help="weight decay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the canvases; 0 draws in this one")
    parser.add_argument("--start", type=Path, help="begin from the networks in this state.safetensors of another run")
    parser.add_argument("--pause", type=int, help="stop after this step; start again without it to go on")
    parser.add_argument("--every", type=int, default=500, help="steps between log rows and checkpoints")
    parser.add_argument("--canvases", type=int, default=4096, help="drawings that the training pictures are cut from")
    parser.add_argument("--held-out", type=int, default=128, help="drawings for validation and units")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 convolutions: much faster where the CPU has AMX")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
