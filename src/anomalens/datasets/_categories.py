"""The drawn categories: one function per category makes its surface, one per defect kind damages it.

Every function takes a `Draft`, draws its own normal variation from `draft.rng`, and anything that has to do with the
defect from `draft.fault_rng`, so that the good and the bad picture of one number differ in the defect alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ._draw import (
    Colour,
    Point,
    Pose,
    Stencil,
    Surface,
    cells,
    dome,
    grid,
    inside,
    mix,
    noise,
    numbers,
    rounded_box,
    soften,
    step,
    wobble,
)
from ._draw import surface as all_body

Rng = np.random.Generator


@dataclass(frozen=True)
class Part:
    """One part on the tray: what it is, the cell (row, column) it lies in, its box (x0, y0, x1, y1) in pixels."""

    name: str
    cell: tuple[int, int]
    box: tuple[int, int, int, int]


@dataclass
class Draft:
    """What a category function needs to know.

    layout_rng is the same for all pictures of one seed. depth scales how far surface defects go into the material.
    parts is filled by the tray: what lies on it.
    """

    size: int
    kind: str
    rng: Rng
    fault_rng: Rng
    layout_rng: Rng
    depth: float = 1.0
    parts: list[Part] = field(default_factory=list)

    def pose(self, shift: float = 0.02, turn: float = 0.06, zoom: float = 0.02) -> Pose:
        """A thing put down nearly in the same place each time."""
        x, y, angle, scale = numbers(self.rng, -1, 1, 4)
        return Pose(0.5 + shift * x, 0.5 + shift * y, turn * angle, 1 + zoom * scale)


def either(rng: Rng) -> float:
    """-1 or 1."""
    return float(2 * rng.integers(2) - 1)


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array((red, green, blue), np.float32)


def full(size: int, value: float = 0.0) -> np.ndarray:
    return np.full((size, size), value, np.float32)


def plain(size: int, colour: Colour, gloss: float = 0.0) -> Surface:
    """An even, flat, matt surface without a thing on it."""
    return all_body(np.tile(rgb(*colour), (size, size, 1)), full(size), gloss)


def tone(colour: Colour | np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A colour made lighter and darker by a field (H, W)."""
    return np.asarray(colour, np.float32) * factor[..., None]


# Textures: they fill the picture, and every picture shows another piece.


def cloth(d: Draft) -> Surface:
    """Denim: indigo warp over pale weft in a 2/2 twill."""
    n = 34
    ox, oy = numbers(d.rng, 0, 64, 2)
    u, v = Pose(angle=d.rng.uniform(-0.04, 0.04)).local(d.size)
    u = (u + 0.006 * noise(d.rng, d.size, 4)) * n + ox
    v = (v + 0.006 * noise(d.rng, d.size, 4)) * n + oy
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    warp_tint, weft_tint = d.rng.uniform(0.82, 1.1, (2, 128)).astype(np.float32)
    warp_over = (i - j) % 4 < 2
    a, b = u - i - 0.5, v - j - 0.5
    across = np.where(warp_over, a, b)  # over the thread on top
    along = np.where(warp_over, (j - i) % 4 * 1.0 + v - j, (i - j) % 4 * 1.0 + u - i)
    arch = np.sin(np.pi * np.clip((along % 2) / 2, 0, 1))
    height = (np.sqrt(np.maximum(1 - 3.4 * across * across, 0)) * (0.65 + 0.35 * arch)).astype(np.float32)
    fibre = 1 + 0.10 * noise(d.rng, d.size, 90, 2)
    tint = np.where(warp_over, warp_tint[i % 128], weft_tint[j % 128]) * fibre * (0.55 + 0.45 * height)
    colour = np.where(warp_over[..., None], rgb(0.20, 0.30, 0.52), rgb(0.74, 0.76, 0.78))
    return all_body(colour * tint[..., None], height * (0.30 / n), 0.02)


def wood(d: Draft) -> Surface:
    """Oak, sawn along the grain."""
    u, v = Pose(angle=d.rng.uniform(-0.03, 0.03)).local(d.size)
    drift = noise(d.rng, d.size, (2, 3), 2)
    u = u + 0.10 * drift + 0.05 * v * d.rng.uniform(-1, 1)
    ring = u * d.rng.uniform(13, 16) + d.rng.uniform(0, 9) + 0.25 * noise(d.rng, d.size, (4, 24), 2)
    late = ring - np.floor(ring)  # early wood is light, then darkens, then starts again
    late = late**2.2 * step(1 - late, 0.0, 0.12)
    fibre = noise(d.rng, d.size, (5, 110), 2)
    pores = step(noise(d.rng, d.size, (12, 170)), 0.42, 0.62) * (0.35 + 0.65 * late)
    colour = mix(tone((0.80, 0.60, 0.38), 1 + 0.07 * fibre + 0.05 * drift), (0.55, 0.35, 0.18), 0.62 * late)
    colour = mix(colour, (0.36, 0.22, 0.11), 0.55 * pores)
    return all_body(colour, 0.0012 * fibre - 0.0020 * pores, 0.03)


def metal(d: Draft) -> Surface:
    """Brushed steel under a soft window."""
    _, y = grid(d.size)
    brush = noise(d.rng, d.size, (150, 3), 2) + 0.6 * noise(d.rng, d.size, (60, 2))
    window = np.exp(-(((y - d.rng.uniform(0.35, 0.5) + 0.02 * brush) / 0.28) ** 2))
    colour = tone((0.56, 0.58, 0.61), 0.86 + 0.075 * brush + 0.34 * window)
    return all_body(colour, 0.0007 * brush, 0.10)


def leather(d: Draft) -> Surface:
    """Full-grain leather: soft cells between folds."""
    u, v = Pose(angle=d.rng.uniform(-0.3, 0.3)).local(d.size)
    ox, oy = numbers(d.rng, 0, 64, 2)
    u = (u + 0.015 * noise(d.rng, d.size, 9)) * 42 + ox
    v = (v + 0.015 * noise(d.rng, d.size, 9)) * 34 + oy
    near, far, index = cells(d.rng, u, v, 0.9)
    pillow = step(far - near, 0.0, 0.42) * (1 - 0.25 * near)
    tint = d.rng.uniform(0.94, 1.06, 4096).astype(np.float32)[index]
    cloud = 1 + 0.10 * noise(d.rng, d.size, 3, 3)
    colour = mix(tone((0.33, 0.17, 0.09), cloud), tone((0.52, 0.29, 0.16), tint * cloud), 0.25 + 0.75 * pillow)
    return all_body(colour, 0.0042 * pillow + 0.0008 * noise(d.rng, d.size, 110), 0.16)


def terrazzo(d: Draft) -> Surface:
    """Chips of marble in pale cement, ground flat."""
    x, y = grid(d.size)
    surface = plain(d.size, (0.80, 0.78, 0.74), 0.08)
    surface.colour *= (1 + 0.035 * noise(d.rng, d.size, 60, 3))[..., None]
    stones = np.array(
        [
            (0.93, 0.91, 0.87),
            (0.62, 0.57, 0.52),
            (0.36, 0.36, 0.38),
            (0.72, 0.47, 0.38),
            (0.86, 0.71, 0.52),
            (0.55, 0.62, 0.58),
        ],
        np.float32,
    )
    for count, gap in ((30, 0.16), (13, 0.20)):
        ox, oy = numbers(d.rng, 0, 64, 2)
        bend = 0.012 * noise(d.rng, d.size, count, 2)
        near, far, index = cells(d.rng, (x + bend) * count + ox, (y - bend) * count + oy, 0.95)
        kept = d.rng.random(4096) < 0.42
        stone = stones[d.rng.integers(0, len(stones), 4096)] * d.rng.uniform(0.9, 1.08, (4096, 1)).astype(np.float32)
        vein = 1 + 0.07 * noise(d.rng, d.size, 40, 2)
        cover = np.where(kept[index], inside((gap - (far - near)) / count, d.size), 0).astype(np.float32)
        surface.paint(cover, stone[index] * vein[..., None])
    surface.height = 0.0003 * noise(d.rng, d.size, 90)
    return surface


def tiles(d: Draft) -> Surface:
    """Glazed wall tiles, 5 x 5, with grout."""
    n = 5
    u, v = Pose(angle=d.rng.uniform(-0.015, 0.015)).local(d.size)
    u, v = u * n + d.rng.uniform(0, 1) + 8, v * n + d.rng.uniform(0, 1) + 8
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    a, b = u - i - 0.5, v - j - 0.5
    tilt_a, tilt_b = d.rng.uniform(-1, 1, (2, 32, 32)).astype(np.float32)
    tint = d.rng.uniform(0.9, 1.1, (32, 32)).astype(np.float32)[j, i]
    edge = rounded_box(a, b, (0.47, 0.47), 0.06)
    cover = inside(edge / n, d.size)
    surface = plain(d.size, (0.80, 0.78, 0.73), 0.0)
    grout = noise(d.rng, d.size, 120)
    surface.colour *= (1 + 0.07 * grout)[..., None]
    surface.height = 0.0006 * grout
    glaze = tone((0.16, 0.47, 0.50), tint * (1 + 0.07 * noise(d.rng, d.size, 14, 3)))
    glaze = mix(glaze, (0.36, 0.66, 0.66), 0.5 * step(edge, -0.10, -0.0))  # glaze runs thin at the edge
    if d.kind == "colour":
        ti, tj = _middle_cell(d.fault_rng, i), _middle_cell(d.fault_rng, j)
        wrong = cover * ((i == ti) & (j == tj))
        glaze = mix(glaze, tone((0.30, 0.38, 0.56), tint), wrong)
        surface.blame(wrong)
    pillow = 0.02 * (1 - step(edge, -0.10, 0.0)) + 0.005 * (tilt_a[j, i] * a + tilt_b[j, i] * b)
    surface.paint(cover, glaze, pillow.astype(np.float32) * (2.2 / n), 0.38)
    return surface


def _middle_cell(rng: Rng, index: np.ndarray) -> int:
    """A cell number that is wholly in the picture."""
    middle = len(index) // 2
    return int(index[middle, middle] + rng.integers(-1, 2))


def stripes(d: Draft) -> Surface:
    """Ticking: printed stripes on fine-ribbed cotton."""
    u, v = Pose(angle=d.rng.uniform(-0.02, 0.02)).local(d.size)
    bend = 0.004 * noise(d.rng, d.size, 3)
    u, v = u + bend + d.rng.uniform(0, 1), v + d.rng.uniform(0, 1)
    surface = plain(d.size, (0.90, 0.87, 0.80), 0.0)
    rib = np.sin(2 * np.pi * 64 * (v + 0.2 * bend)).astype(np.float32)
    surface.height = 0.0016 * rib + 0.0008 * noise(d.rng, d.size, 100)
    shift = full(d.size)
    if d.kind == "misprint":
        x, y = grid(d.size)
        top, tall = d.fault_rng.uniform(0.2, 0.6), d.fault_rng.uniform(0.10, 0.2)
        left, wide = d.fault_rng.uniform(0.1, 0.5), d.fault_rng.uniform(0.25, 0.4)
        torn = ((x > left) & (x < left + wide) & (y > top) & (y < top + tall)).astype(np.float32)
        shift = torn * (either(d.fault_rng) * d.fault_rng.uniform(0.018, 0.03))
        surface.blame(torn)
    t = (u + shift) * 5
    t = t - np.floor(t)
    ink = 1 - 0.13 * (0.5 + 0.5 * rib) + 0.06 * noise(d.rng, d.size, 70, 2)
    for middle, half, colour in (
        (0.30, 0.15, (0.17, 0.27, 0.45)),
        (0.55, 0.025, (0.70, 0.24, 0.20)),
        (0.68, 0.025, (0.17, 0.27, 0.45)),
        (0.85, 0.035, (0.85, 0.62, 0.30)),
    ):
        surface.paint(inside((np.abs(t - middle) - half) / 5, d.size), tone(colour, ink))
    return surface


# Things on a ground.


def cap(d: Draft) -> Surface:
    """A crown cap from above: crimped steel, enamelled, printed with a star."""
    surface = _ground(d, (0.33, 0.36, 0.38))
    pose = d.pose(turn=0.10)
    u, v = pose.local(d.size)
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    wave = np.cos(21 * theta)
    edge = r - (0.372 + 0.013 * wave)
    body = inside(edge, d.size)
    skirt = step(r, 0.27, 0.36)
    height = 0.10 - 0.11 * skirt * (1 + 0.30 * wave * step(r, 0.29, 0.35))
    surface.shadow(body, 0.02)
    surface.paint(body, tone((0.68, 0.12, 0.12), 1 + 0.03 * noise(d.rng, d.size, 40, 2)), height, 0.42)
    ring = inside(np.abs(r - 0.245) - 0.007, d.size)
    surface.paint(ring, (0.93, 0.90, 0.82))
    star = Stencil(d.size).polygon(pose.place(_star(0, 0, 0.16))).cover()
    if d.kind == "misprint":
        angle, way = d.fault_rng.uniform(0.4, 0.8), d.fault_rng.uniform(0, 2 * math.pi)
        wrong = Pose(0.05 * math.cos(way), 0.05 * math.sin(way), angle).place(_star(0, 0, 0.16))
        moved = Stencil(d.size).polygon(pose.place(wrong)).cover()
        surface.blame(np.abs(moved - star))
        star = moved
    surface.paint(star, (0.93, 0.90, 0.82))
    surface.body = body
    return surface


def _star(x: float, y: float, radius: float) -> list[Point]:
    corners = [(radius if k % 2 == 0 else 0.45 * radius, math.pi * (k / 5 - 0.5)) for k in range(10)]
    return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in corners]


def _ground(d: Draft, colour: Colour, grain: float = 0.05) -> Surface:
    """A rubber belt or a sheet of card under the thing."""
    surface = plain(d.size, colour)
    surface.colour *= (1 + grain * noise(d.rng, d.size, 90, 2) + 0.03 * noise(d.rng, d.size, 3))[..., None]
    return surface


def screw(d: Draft) -> Surface:
    """A yellow-passivated wood screw, lying down."""
    surface = _ground(d, (0.80, 0.81, 0.82), 0.015)
    pose = d.pose(turn=0.08)
    pose = Pose(pose.x, pose.y, pose.angle - math.pi / 4, pose.scale)
    u, v = pose.local(d.size)
    turn = d.rng.uniform(0, 1)  # where the thread happens to stand

    def shape(tip: float, worn: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
        core = 0.047 * np.clip((tip - u) / 0.10, 0, 1) ** 0.7
        winding = 0.5 + 0.5 * np.cos(2 * np.pi * ((u + 0.22 * v) / 0.036 + turn))
        tall = 0.024 * winding**2 * step(u, -0.12, -0.09) * np.clip((tip - u) / 0.08, 0, 1)
        if worn:
            tall = tall * (1 - 0.9 * step(u, worn[0], worn[0] + 0.01) * step(-u, -worn[1], 0.01 - worn[1]))
        shank = np.maximum(np.abs(v) - core - tall, np.maximum(-0.36 - u, u - tip))
        neck = np.clip((u + 0.40) / 0.10, 0, 1)
        head = np.maximum(np.abs(v) - (0.125 - 0.078 * neck**0.8), np.maximum(-0.42 - u, u + 0.30))
        wide = np.where(head < shank, 0.125 - 0.078 * neck**0.8, core + tall)
        return inside(np.minimum(shank, head), d.size), dome(v, 1.0 * np.maximum(wide, 1e-3)).astype(np.float32)

    body, height = shape(0.42, None)
    if d.kind in ("short", "worn"):
        at = d.fault_rng.uniform(-0.05, 0.15)
        before, raised = body, height
        body, height = (
            shape(d.fault_rng.uniform(0.30, 0.36), None)
            if d.kind == "short"
            else shape(0.42, (at, at + d.fault_rng.uniform(0.09, 0.16)))
        )
        surface.blame(step(np.abs(before - body), 0.2, 0.6))
        if d.kind == "worn":
            surface.blame(step(np.abs(raised - height) * body, 0.001, 0.004))
    surface.shadow(body, 0.016, 0.5)
    brass = tone((0.70, 0.58, 0.30), 1 + 0.05 * noise(d.rng, d.size, 30, 2))
    surface.paint(body, brass, height * 0.75, 0.55)
    surface.body = body
    return surface


def pill(d: Draft) -> Surface:
    """A two-coloured capsule with an imprint, in a white tray."""
    surface = _ground(d, (0.86, 0.87, 0.88), 0.012)
    pose = d.pose(turn=0.08)
    u, v = pose.local(d.size)
    along = np.maximum(np.abs(u) - 0.20, 0)
    axis = np.hypot(along, v)
    radius = 0.155 + 0.006 * step(-u, 0.02, 0.028)  # the cap slides over the body
    body = inside(axis - radius, d.size)
    surface.shadow(body, 0.022, 0.35)
    left = inside(u + 0.02, d.size)
    shell = mix(tone((0.94, 0.90, 0.80), full(d.size, 1)), (0.75, 0.16, 0.15), left)
    surface.paint(body, shell * (1 + 0.015 * noise(d.rng, d.size, 30, 2))[..., None], dome(axis, 0.165) * 0.8, 0.5)
    ink = _imprint(d, pose)
    if d.kind == "misprint":
        turned = Pose(
            *pose.place([(0.145, d.fault_rng.uniform(-0.03, 0.03))])[0],
            pose.angle + either(d.fault_rng) * d.fault_rng.uniform(0.4, 0.9),
        )
        wrong = _imprint(d, turned, (-0.145, 0))
        surface.blame(np.maximum(ink, wrong))
        ink = wrong
    surface.paint(ink * body, (0.24, 0.26, 0.36))
    surface.body = body
    return surface


def _imprint(d: Draft, pose: Pose, shift: Point = (0, 0)) -> np.ndarray:
    """The letters A 7 on the light half."""
    stencil = Stencil(d.size)
    for stroke in (
        [(0.07, 0.05), (0.10, -0.05), (0.13, 0.05)],
        [(0.082, 0.018), (0.118, 0.018)],
        [(0.16, -0.05), (0.22, -0.05), (0.185, 0.05)],
    ):
        stencil.line(pose.place([(x + shift[0], y + shift[1]) for x, y in stroke]), 0.013)
    return stencil.cover()


def gear(d: Draft) -> Surface:
    """A spur gear of 20 teeth, turned and drilled, on a dark mat."""
    surface = _ground(d, (0.16, 0.18, 0.21))
    pose = d.pose(turn=0.05)
    u, v = pose.local(d.size)
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    turn = theta * 20 / (2 * np.pi)
    number = np.floor(turn + 0.5).astype(np.int32) % 20
    tooth = step(0.5 - np.abs(turn - np.floor(turn + 0.5)), 0.14, 0.32)

    def outline(tooth: np.ndarray) -> np.ndarray:
        holes = np.full_like(r, 1)
        for k in range(5):
            a = 2 * math.pi * (k + 0.25) / 5
            holes = np.minimum(holes, np.hypot(u - 0.205 * math.cos(a), v - 0.205 * math.sin(a)) - 0.052)
        bore = np.minimum(r - 0.085, rounded_box(u, v + 0.09, (0.022, 0.03), 0.002))
        return np.maximum(r - (0.335 + 0.055 * tooth), -np.minimum(holes, bore))

    edge = outline(tooth)
    body = inside(edge, d.size)
    if d.kind == "missing":
        first = d.fault_rng.integers(0, 20)
        gone = (number == first) | ((number == (first + 1) % 20) & bool(d.fault_rng.integers(0, 2)))
        edge = outline(np.where(gone, 0.12 * tooth, tooth))
        surface.blame(step(body - inside(edge, d.size), 0.2, 0.6))
        body = inside(edge, d.size)
    surface.shadow(body, 0.018, 0.5)
    rows = noise(d.rng, d.size, 2) * 0.02 + r
    lathe = np.sin(rows * 420 + 2 * np.sin(rows * 97)).astype(np.float32)
    sheen = 0.92 + 0.10 * np.cos(2 * (theta - 0.9)) + 0.05 * np.cos(4 * theta + 1) + 0.025 * lathe
    hub = step(r, 0.127, 0.133) * (1 - step(r, 0.288, 0.294))  # the web between hub and rim lies lower
    height = np.clip(-edge, 0, 0.010) * 1.2 - 0.010 * hub
    surface.paint(body, tone((0.62, 0.64, 0.66), sheen * (1 - 0.12 * hub)), height, 0.22)
    surface.body = body
    return surface


def cookie(d: Draft) -> Surface:
    """A cookie with chocolate chips: no two are the same."""
    surface = _ground(d, (0.74, 0.78, 0.80), 0.02)
    pose = d.pose(turn=math.pi)
    u, v = pose.local(d.size)
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    rim = 0.35 + wobble(d.rng, theta, 0.0, 0.006, range(2, 9))
    body = inside(r - rim, d.size)
    eaten = full(d.size)
    if d.kind == "missing":
        a = d.fault_rng.uniform(0, 2 * math.pi)
        for k in (-1, 0, 1):
            at = (0.37 * math.cos(a + 0.22 * k), 0.37 * math.sin(a + 0.22 * k))
            eaten = np.maximum(eaten, inside(np.hypot(u - at[0], v - at[1]) - 0.065, d.size))
        surface.blame(eaten * body)
    whole = body
    body = body * (1 - eaten)
    surface.shadow(body, 0.016, 0.4)
    crumb = noise(d.rng, d.size, 26, 4, 0.65)
    baked = step(r / rim, 0.55, 1.0)
    colour = mix(tone((0.83, 0.64, 0.38), 1 + 0.13 * crumb), tone((0.62, 0.39, 0.18), 1 + 0.13 * crumb), 0.85 * baked)
    height = 0.06 * np.sqrt(np.maximum(1 - (r / 0.37) ** 2, 0)) + 0.011 * crumb
    surface.paint(body, colour, height.astype(np.float32), 0.03)
    chips = cells(d.rng, u * 8.5 + 20, v * 8.5 + 20, 0.75)
    size = d.rng.uniform(-0.10, 0.40, 4096).astype(np.float32)[chips[2]]
    lump = chips[0] + 0.10 * noise(d.rng, d.size, 20, 2) - size
    chip = inside(lump / 8.5, d.size) * body * inside(r - 0.30, d.size)
    surface.paint(chip, tone((0.25, 0.13, 0.08), 1 + 0.1 * crumb), surface.height + 0.02 * np.clip(-lump, 0, 0.3), 0.2)
    surface.body = body if d.kind != "missing" else whole * (1 - eaten)
    return surface


def board(d: Draft) -> Surface:
    """A small printed circuit board. The layout belongs to the seed: every picture shows the same board."""
    surface = _ground(d, (0.78, 0.77, 0.74), 0.02)
    pose = d.pose(shift=0.012, turn=0.025, zoom=0.01)
    u, v = pose.local(d.size)
    edge = rounded_box(u, v, (0.44, 0.44), 0.03)
    drill = Stencil(d.size)
    rings = Stencil(d.size)
    for sx in (-0.385, 0.385):
        for sy in (-0.385, 0.385):
            (at,) = pose.place([(sx, sy)])
            rings.disc(at, 0.038)
            drill.disc(at, 0.024)
    holes = drill.cover()
    body = inside(edge, d.size) * (1 - holes)
    surface.shadow(body, 0.014, 0.4)
    weave = 1 + 0.03 * noise(d.rng, d.size, 120) + 0.03 * noise(d.rng, d.size, 4)
    surface.paint(body, tone((0.07, 0.33, 0.20), weave), 0.02, 0.10)

    tracks = _tracks(d.layout_rng)
    copper = Stencil(d.size)
    for track in tracks:
        copper.line(pose.place(track), 0.013)
    traces = copper.cover()
    if d.kind in ("open", "short"):
        changed = _broken_trace(d, pose, tracks)
        surface.blame(changed)
        traces = np.maximum(traces, changed) if d.kind == "short" else traces * (1 - changed)
    surface.paint(traces * body, tone((0.30, 0.62, 0.36), weave), 0.0215)
    pads = Stencil(d.size)
    for track in tracks:
        for end in (track[0], track[-1]):
            pads.disc(pose.place([end])[0], 0.014)
    gold = np.maximum(pads.cover(), rings.cover()) * body
    surface.paint(gold, (0.83, 0.68, 0.36), 0.022, 0.35)
    _components(d, surface, pose)
    surface.body = body
    return surface


def _tracks(rng: Rng) -> list[list[Point]]:
    """Traces with one bend of 45 degrees, in lanes across the lower half of the board and down the right side."""
    tracks: list[list[Point]] = []
    for lane in range(9):
        y = 0.05 + 0.036 * lane
        start, bend, end = rng.uniform(-0.34, -0.22), rng.uniform(-0.12, 0.12), rng.uniform(0.22, 0.31)
        drop = 0.036 * 2.0
        tracks.append([(start, y), (bend, y), (bend + drop, y - drop), (end, y - drop)])
    for lane in range(4):
        x = 0.12 + 0.05 * lane
        tracks.append([(x, -0.36), (x, rng.uniform(-0.28, -0.22)), (x + 0.05, -0.15), (x + 0.05, -0.09)])
    return tracks


def _broken_trace(d: Draft, pose: Pose, tracks: list[list[Point]]) -> np.ndarray:
    """A gap in one trace (open) or a bridge of copper to the next one (short)."""
    lane = int(d.fault_rng.integers(2, 7))
    (x0, y), (x1, _) = tracks[lane][:2]
    x0, x1 = max(x0, tracks[lane + 1][0][0]) + 0.03, min(x1, tracks[lane + 1][1][0]) - 0.03
    x = d.fault_rng.uniform(x0, max(x1, x0 + 0.01))
    wide = d.fault_rng.uniform(0.02, 0.035)
    if d.kind == "open":
        corners = [(x, y - 0.012), (x + wide, y - 0.012), (x + wide * 0.8, y + 0.012), (x + 0.2 * wide, y + 0.012)]
    else:
        corners = [
            (x, y),
            (x + wide, y),
            (x + 0.7 * wide, y + 0.018),
            (x + 0.9 * wide, y + 0.036),
            (x, y + 0.036),
            (x + 0.25 * wide, y + 0.018),
        ]
    return Stencil(d.size).polygon(pose.place(corners)).cover()


def _components(d: Draft, surface: Surface, pose: Pose) -> None:
    """A chip in its package, resistors, capacitors: one may be missing or crooked."""
    spots = [("resistor", Pose(-0.26 + 0.105 * k, -0.06)) for k in range(3)]
    spots += [("resistor", Pose(0.375, y, math.pi / 2)) for y in (-0.22, -0.10, 0.02)]
    spots += [("can", Pose(-0.365, y)) for y in (0.12, 0.25)]
    for name, spot in spots:
        pad = (0.034, 0.019) if name == "resistor" else (0.03, 0.012)
        bare, u, v = surface.window(pose.then(spot), 0.07)
        for side in (-1, 1):
            land = rounded_box(u - side * pad[0] * 0.8, v, (0.014, pad[1]), 0.003)
            bare.paint(inside(land, d.size), (0.83, 0.68, 0.36), 0.022, 0.35)
    odd = int(d.fault_rng.integers(len(spots))) if d.kind in ("missing", "misplaced") else None
    for k, (name, spot) in enumerate(spots):
        if k == odd:
            surface.blame(_footprint(d.size, pose.then(spot), name))
            if d.kind == "missing":
                continue
            spot = Pose(
                spot.x + 0.016 * either(d.fault_rng),
                spot.y + 0.014 * either(d.fault_rng),
                spot.angle + either(d.fault_rng) * d.fault_rng.uniform(0.35, 0.7),
            )
            surface.blame(_footprint(d.size, pose.then(spot), name))
        _solder(surface, pose.then(spot), name)
    _solder(surface, pose.then(Pose(-0.17, -0.235)), "chip")


HALF = {"chip": (0.115, 0.075), "resistor": (0.034, 0.019), "can": (0.05, 0.05)}


def _footprint(size: int, at: Pose, name: str) -> np.ndarray:
    return inside(_component_edge(*at.local(size), name), size)


def _component_edge(u: np.ndarray, v: np.ndarray, name: str) -> np.ndarray:
    return np.hypot(u, v) - HALF[name][0] if name == "can" else rounded_box(u, v, HALF[name], 0.004)


def _solder(board: Surface, at: Pose, name: str) -> None:
    """Put one component on the board."""
    surface, u, v = board.window(at, max(HALF[name]) * 1.5 + 0.03)
    size = board.size
    cover = inside(_component_edge(u, v, name), size)
    if name == "chip":
        legs = np.abs(u / 0.03 - np.round(u / 0.03)) * 0.03 - 0.006
        legs = np.maximum(np.maximum(legs, np.abs(v) - 0.1), np.abs(u) - 0.1)
        surface.paint(inside(legs, size), (0.78, 0.78, 0.76), 0.026, 0.4)
    surface.shadow(cover, 0.008, 0.5)
    if name == "chip":
        surface.paint(cover, (0.12, 0.12, 0.13), 0.045, 0.12)
        surface.paint(inside(np.hypot(u + 0.095, v - 0.055) - 0.009, size), (0.42, 0.42, 0.42))
        for y, left, right in ((-0.018, -0.06, 0.06), (0.018, -0.06, 0.02)):
            line = rounded_box(u - (left + right) / 2, v - y, ((right - left) / 2, 0.006), 0.003)
            surface.paint(inside(line, size), (0.55, 0.55, 0.53))
    elif name == "resistor":
        surface.paint(cover, (0.80, 0.79, 0.76), 0.030, 0.35)
        surface.paint(cover * inside(np.abs(u) - 0.020, size), (0.10, 0.10, 0.12), 0.033, 0.1)
    else:
        surface.paint(cover, (0.70, 0.71, 0.73), 0.05 + np.clip(0.05 - np.hypot(u, v), 0, 0.01), 0.4)
        surface.paint(cover * inside(v + 0.022, size), (0.13, 0.14, 0.20))


# A tray: every part is fine, the whole may be wrong.

Cell = tuple[int, int]
ORDER: dict[Cell, tuple[str, ...]] = {
    (0, 0): ("washer", "washer"),
    (0, 1): ("bolt",),
    (0, 2): ("nut",),
    (1, 0): ("ball", "ball", "ball"),
    (1, 1): ("seal",),
    (1, 2): ("pin", "pin"),
}
PLACES: dict[Cell, tuple[Point, ...]] = {  # in the cell; the last one stays free
    (0, 0): ((-0.04, -0.115), (0.04, 0.0), (-0.04, 0.115)),
    (0, 1): ((-0.055, 0.0), (0.065, 0.0)),
    (0, 2): ((0.0, -0.075), (0.0, 0.085)),
    (1, 0): ((-0.06, -0.075), (0.06, -0.04), (-0.05, 0.085), (0.065, 0.09)),
    (1, 1): ((0.0, -0.09), (0.0, 0.095)),
    (1, 2): ((-0.075, 0.0), (0.0, 0.0), (0.075, 0.0)),
}
TURN = {"bolt": 0.2, "pin": 0.12}  # radians either way
REACH = 0.17  # no part reaches further from its centre


def tray(d: Draft) -> Surface:
    """A tray of 2 x 3 cells: two washers, a bolt, a nut; three balls, a seal, two pins (see ORDER)."""
    surface = plain(d.size, (0.27, 0.30, 0.34), 0.05)
    pose = d.pose(shift=0.01, turn=0.02, zoom=0.01)
    u, v = pose.local(d.size)
    column, row = np.clip(np.floor(u / 0.30 + 1.5), 0, 2), np.clip(np.floor(v / 0.40 + 1), 0, 1)
    wall = rounded_box(u - (column - 1) * 0.30, v - (row - 0.5) * 0.40, (0.14, 0.188), 0.03)
    grain = noise(d.rng, d.size, 120)
    surface.paint(step(-wall, 0, 0.012), (0.40, 0.44, 0.49))
    surface.colour *= (1 + 0.02 * grain)[..., None]
    surface.height += -0.03 * step(-wall, 0, 0.02) + 0.0003 * grain

    spots = {(cell, k): _spot(d.rng, cell, place) for cell, places in PLACES.items() for k, place in enumerate(places)}
    right = {(cell, k): name for cell, names in ORDER.items() for k, name in enumerate(names)}
    found = _rearranged(d, right)
    for key in sorted(right.keys() | found.keys()):
        if right.get(key) != found.get(key):
            for name in filter(None, (right.get(key), found.get(key))):
                window, u, v = surface.window(_lie(pose, spots[key], name), REACH)
                window.blame(inside(_part_edge(name, u, v), d.size))
    for key, name in found.items():
        d.parts.append(Part(name, key[0], _put(surface, _lie(pose, spots[key], name), name)))
    return surface


def _lie(tray: Pose, spot: Pose, name: str) -> Pose:
    """The pose of a part in the picture: long parts stand nearly upright, the others at any angle."""
    return tray.then(Pose(spot.x, spot.y, spot.angle * TURN.get(name, math.pi)))


def _spot(rng: Rng, cell: Cell, place: Point) -> Pose:
    """Where a part comes to lie on the tray; angle from -1 to 1, of what its kind allows."""
    dx, dy, turn = numbers(rng, -1, 1, 3)
    return Pose((cell[1] - 1) * 0.30 + place[0] + 0.01 * dx, (cell[0] - 0.5) * 0.40 + place[1] + 0.01 * dy, turn)


def _rearranged(d: Draft, right: dict[tuple[Cell, int], str]) -> dict[tuple[Cell, int], str]:
    """What lies where: `right`, with one part gone, one too many, or two parts of different kinds exchanged."""
    found = dict(right)
    keys = list(right)
    one = keys[d.fault_rng.integers(len(keys))]
    if d.kind == "missing":
        del found[one]
    elif d.kind == "extra":
        found[(one[0], len(ORDER[one[0]]))] = right[one]
    elif d.kind == "misplaced":
        others = [key for key in keys if right[key] != right[one]]
        other = others[d.fault_rng.integers(len(others))]
        found[one], found[other] = right[other], right[one]
    return found


def _part_edge(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a part."""
    r = np.hypot(u, v)
    if name in ("washer", "seal"):
        middle, half = (0.042, 0.018) if name == "washer" else (0.060, 0.014)
        return np.abs(r - middle) - half
    if name == "nut":
        flats = [np.abs(u * math.cos(a) + v * math.sin(a)) for a in (0, math.pi / 3, 2 * math.pi / 3)]
        return np.maximum(np.maximum.reduce(flats) - 0.054, 0.028 - r)
    if name == "ball":
        return r - 0.036
    if name == "pin":
        return np.hypot(u, np.maximum(np.abs(v) - 0.09, 0)) - 0.024
    thread = 0.004 * np.cos(2 * np.pi * v / 0.02)
    shank = np.maximum(np.abs(u) - 0.024 - thread, np.abs(v - 0.03) - 0.105)
    return np.minimum(shank, rounded_box(u, v + 0.10, (0.044, 0.027), 0.006))


MATERIAL: dict[str, tuple[Colour, float]] = {
    "washer": ((0.74, 0.75, 0.77), 0.3),
    "bolt": ((0.66, 0.67, 0.70), 0.4),
    "nut": ((0.80, 0.66, 0.34), 0.35),
    "ball": ((0.62, 0.64, 0.68), 0.9),
    "seal": ((0.12, 0.12, 0.13), 0.25),
    "pin": ((0.80, 0.42, 0.28), 0.4),
}


def _put(tray: Surface, at: Pose, name: str) -> tuple[int, int, int, int]:
    """Lay one part down; returns its box in pixels, x1 and y1 exclusive."""
    surface, u, v = tray.window(at, REACH)
    edge = _part_edge(name, u, v)
    cover = inside(edge, tray.size)
    height = {
        "ball": dome(np.hypot(u, v), 0.037),
        "pin": dome(u, 0.025) * 0.8,
        "seal": dome(edge + 0.014, 0.014),
        "bolt": dome(u, 0.03 + 0.02 * inside(v + 0.075, tray.size)) * 0.6,
    }.get(name, np.clip(-edge, 0, 0.006))
    colour, gloss = MATERIAL[name]
    surface.shadow(cover, 0.01, 0.5)
    surface.paint(cover, colour, height, gloss)
    rows, columns = np.flatnonzero(cover.max(1) > 0.5), np.flatnonzero(cover.max(0) > 0.5)
    left, top = max(0, int((at.x - REACH) * tray.size)), max(0, int((at.y - REACH) * tray.size))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


# One height map under six lights.


def relief(d: Draft) -> Surface:
    """A struck medal of one colour: what is wrong with its height shows in light from the right side only."""
    surface = _ground(d, (0.30, 0.31, 0.33), 0.03)
    pose = d.pose(shift=0.015, turn=0.05, zoom=0.01)
    u, v = pose.local(d.size)
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    body = inside(r - 0.42, d.size)
    rim = 0.022 * step(r, 0.375, 0.395) * (1 - step(r, 0.405, 0.42))
    beads = 0.010 * step(dome(np.hypot((r - 0.345), (theta * 40 / (2 * np.pi) % 1 - 0.5) * 0.054), 0.016), 0, 0.016)
    petal = np.abs(np.cos(4 * theta)) ** 0.7
    rosette = 0.020 * step(0.27 * (0.45 + 0.55 * petal) - r, 0.0, 0.06)
    vein = -0.006 * np.exp(-((np.sin(4 * theta) * r / 0.012) ** 2)) * step(r, 0.07, 0.1) * (r < 0.25)
    heart = 0.012 * step(0.06 - r, 0, 0.02)
    ring = 0.005 * np.exp(-(((r - 0.305) / 0.006) ** 2))
    strike = 0.0007 * noise(d.rng, d.size, 80, 2) + 0.002 * noise(d.rng, d.size, 4)
    surface.shadow(body, 0.01, 0.3)
    metal = tone((0.66, 0.60, 0.50), 1 + 0.03 * noise(d.rng, d.size, 50, 2))
    surface.paint(body, metal, rim + beads + rosette + vein + heart + ring + strike, 0.10)
    surface.body = body
    return surface


# Defects of a surface.


def spot(d: Draft, surface: Surface, margin: float = 0.07) -> Point:
    """A place on the body, `margin` away from its outline and from the border of the picture."""
    room = soften(surface.body, margin * d.size * 0.6) > 0.97
    edge = max(1, round(0.1 * d.size))
    room[:edge] = room[-edge:] = False
    room[:, :edge] = room[:, -edge:] = False
    free = np.flatnonzero(room)
    if not len(free):  # thin things: anywhere on them
        free = np.flatnonzero(surface.body > 0.99)
    y, x = divmod(int(free[d.fault_rng.integers(len(free))]), d.size)
    return (x + 0.5) / d.size, (y + 0.5) / d.size


def blob(d: Draft, at: Point, radius: float, rough: float = 0.25) -> np.ndarray:
    """Signed distance, roughly, to a random round shape."""
    x, y = grid(d.size)
    r, theta = np.hypot(x - at[0], y - at[1]), np.arctan2(y - at[1], x - at[0])
    return r - radius * (1 + wobble(d.fault_rng, theta, 0.1 * rough, 0.3 * rough, range(2, 7)))


def curve(d: Draft, at: Point, length: float, bend: float, count: int = 24) -> list[Point]:
    """A smooth line through a place, in a random direction."""
    angle = d.fault_rng.uniform(0, 2 * math.pi)
    turns = np.cumsum(d.fault_rng.normal(0, bend, count))
    turns = np.convolve(turns, np.full(5, 0.2), "same")
    steps = np.stack([np.cos(angle + turns), np.sin(angle + turns)], 1) * (length / count)
    points = np.cumsum(steps, 0)
    points += np.array(at) - points[count // 2]
    return [(float(x), float(y)) for x, y in points]


def on(surface: Surface, cover: np.ndarray) -> np.ndarray:
    """The part of a defect's coverage that is on the body; what is fainter than a tenth is left out."""
    cover = cover * step(surface.body, 0.85, 1.0)
    return np.where(cover > FAINT, cover, 0).astype(np.float32)


FAINT = 0.1


def scratch(d: Draft, s: Surface) -> None:
    """A groove with bright bare material at its bottom."""
    path = curve(d, spot(d, s), d.fault_rng.uniform(0.18, 0.36), 0.03)
    cover = on(s, Stencil(d.size).line(path, d.fault_rng.uniform(0.007, 0.012)).cover())
    bright = np.average(s.colour.mean(axis=2), weights=cover + 1e-6) < 0.6  # of what is scratched
    s.paint(0.55 * d.depth * cover, (0.88, 0.87, 0.85) if bright else (0.35, 0.32, 0.30))
    s.height -= 0.006 * d.depth * cover
    s.blame(cover)


def crack(d: Draft, s: Surface) -> None:
    """A jagged dark line with a branch, wide in the middle."""
    count = 18
    path = curve(d, spot(d, s), d.fault_rng.uniform(0.22, 0.38), 0.10, count)
    path = [(x + d.fault_rng.normal(0, 0.006), y + d.fault_rng.normal(0, 0.006)) for x, y in path]
    stencil = Stencil(d.size)
    for k in range(count - 1):
        stencil.line(path[k : k + 2], 0.004 + 0.007 * math.sin(math.pi * (k + 0.5) / (count - 1)))
    fork = int(d.fault_rng.integers(count // 3, 2 * count // 3))
    angle = d.fault_rng.uniform(0, 2 * math.pi)
    branch = [path[fork]]
    for _ in range(5):
        angle += d.fault_rng.normal(0, 0.4)
        branch.append((branch[-1][0] + 0.016 * math.cos(angle), branch[-1][1] + 0.016 * math.sin(angle)))
    cover = on(s, stencil.line(branch, 0.005).cover())
    s.paint(0.85 * cover, s.colour * 0.22)
    s.height -= 0.008 * cover
    s.blame(cover)


def stain(d: Draft, s: Surface) -> None:
    """A spilt liquid, darker at its edge."""
    edge = blob(d, spot(d, s), d.fault_rng.uniform(0.05, 0.10), 0.45)
    cover = on(s, step(-edge, -0.004, 0.010))
    rim = cover * (1 - step(-edge, 0.006, 0.022))
    tint = STAINS[d.fault_rng.integers(len(STAINS))]
    s.paint(0.42 * cover + 0.25 * rim, s.colour * rgb(*tint))
    s.gloss += 0.06 * cover
    s.blame(cover)


STAINS = ((0.45, 0.30, 0.12), (0.25, 0.22, 0.20), (0.35, 0.16, 0.14), (0.18, 0.26, 0.34))


def hole(d: Draft, s: Surface) -> None:
    """A place where material is gone: dark, with a frayed edge."""
    edge = blob(d, spot(d, s), d.fault_rng.uniform(0.025, 0.05), 0.5)
    edge += 0.004 * noise(d.fault_rng, d.size, 60)
    cover = on(s, inside(edge, d.size))
    s.paint(cover, tone((0.07, 0.06, 0.06), 1 + 0.3 * noise(d.fault_rng, d.size, 50)), s.height - 0.03, 0.0)
    s.blame(cover)


def dent(d: Draft, s: Surface, sign: float = -1.0) -> None:
    """A smooth hollow; the colour is untouched."""
    edge = blob(d, spot(d, s), d.fault_rng.uniform(0.05, 0.08), 0.12)
    depth = on(s, np.clip(-edge / 0.05, 0, 1))
    s.height += sign * d.depth * d.fault_rng.uniform(0.014, 0.02) * depth * depth * (3 - 2 * depth)
    s.blame(depth)


def bump(d: Draft, s: Surface) -> None:
    """A smooth swelling."""
    dent(d, s, 1.0)


def colour(d: Draft, s: Surface) -> None:
    """A patch of another hue, as bright as the rest."""
    cover = on(s, step(-blob(d, spot(d, s), d.fault_rng.uniform(0.07, 0.11), 0.35), 0.0, 0.02))
    here = s.colour[cover > 0].mean(axis=0) if cover.any() else s.colour.mean(axis=(0, 1))
    other = sorted(TINTS, key=lambda tint: -float(np.square(rgb(*tint) - here / here.mean()).sum()))
    tint = other[d.fault_rng.integers(2)]  # one of the two that differ most from what is there
    s.paint(0.55 * cover, s.colour.mean(axis=2, keepdims=True) * rgb(*tint))
    s.blame(cover)


TINTS = ((1.45, 0.95, 0.60), (0.60, 1.10, 1.30), (1.30, 0.65, 1.05), (0.65, 1.35, 0.70))


def contamination(d: Draft, s: Surface) -> None:
    """A handful of crumbs of something else."""
    x, y = spot(d, s)
    hue = ((0.12, 0.11, 0.10), (0.86, 0.83, 0.78), (0.55, 0.33, 0.14))[d.fault_rng.integers(3)]
    cover = np.zeros_like(s.body)
    for _ in range(int(d.fault_rng.integers(4, 9))):
        at = (x + d.fault_rng.normal(0, 0.035), y + d.fault_rng.normal(0, 0.035))
        edge = blob(d, at, d.fault_rng.uniform(0.007, 0.019), 0.6)
        cover = np.maximum(cover, inside(edge, d.size))
    cover = on(s, cover)
    s.shadow(cover, 0.006, 0.4)
    s.paint(cover, hue, s.height + 0.008, 0.1)
    s.blame(cover)


def thread(d: Draft, s: Surface) -> None:
    """A loose fibre lying on top."""
    path = curve(d, spot(d, s), d.fault_rng.uniform(0.3, 0.5), 0.32, 40)
    cover = Stencil(d.size).line(path, d.fault_rng.uniform(0.008, 0.012)).cover()
    hue = ((0.80, 0.22, 0.20), (0.93, 0.92, 0.88), (0.15, 0.15, 0.17), (0.90, 0.74, 0.26))[d.fault_rng.integers(4)]
    s.shadow(cover, 0.007, 0.45)
    s.paint(cover, hue, s.height + 0.006, 0.1)
    s.blame(cover)


DAMAGE: dict[str, Callable[[Draft, Surface], None]] = {
    f.__name__: f for f in (scratch, crack, stain, hole, dent, bump, colour, contamination, thread)
}


@dataclass(frozen=True)
class Recipe:
    """How a category is drawn, its defect kinds, the even share of its light, the depth of its surface defects."""

    draw: Callable[[Draft], Surface]
    kinds: tuple[str, ...]
    ambient: float = 0.45
    depth: float = 1.0


RECIPES = {
    "board": Recipe(board, ("missing", "misplaced", "open", "scratch", "short")),
    "cap": Recipe(cap, ("dent", "misprint", "scratch", "stain")),
    "cloth": Recipe(cloth, ("colour", "hole", "stain", "thread")),
    "cookie": Recipe(cookie, ("contamination", "crack", "missing", "stain")),
    "gear": Recipe(gear, ("crack", "dent", "missing", "scratch")),
    "leather": Recipe(leather, ("colour", "crack", "hole", "scratch", "stain")),
    "metal": Recipe(metal, ("contamination", "dent", "scratch", "stain")),
    "pill": Recipe(pill, ("colour", "contamination", "crack", "misprint")),
    "relief": Recipe(relief, ("bump", "dent", "scratch", "stain"), ambient=0.2, depth=0.6),
    "screw": Recipe(screw, ("scratch", "short", "stain", "worn")),
    "stripes": Recipe(stripes, ("hole", "misprint", "stain", "thread")),
    "terrazzo": Recipe(terrazzo, ("contamination", "crack", "hole", "stain")),
    "tiles": Recipe(tiles, ("colour", "crack", "hole", "stain")),
    "tray": Recipe(tray, ("extra", "misplaced", "missing")),
    "wood": Recipe(wood, ("crack", "hole", "scratch", "stain")),
}


def make(draft: Draft, category: str) -> Surface:
    """The finished surface: drawn by its category and, unless that already did it, damaged."""
    recipe = RECIPES[category]
    draft.depth = recipe.depth
    surface = recipe.draw(draft)
    if draft.kind in DAMAGE and not surface.fault.any():
        DAMAGE[draft.kind](draft, surface)
    return surface
