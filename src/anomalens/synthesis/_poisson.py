"""Seamless blending: gradients of one picture, border of another. A sparse solver in numpy alone.

The change u of a picture I, which is 0 outside a region, is the solution of a discrete Poisson equation,

    sum over the four neighbours q of p:  u(p) - u(q)  =  w(p, q),       w(p, q) = v(p, q) - (I(p) - I(q)),

for every p of the region, where v are the wanted differences between neighbours: those of the pasted picture J, or,
mixed, those of I where they are larger. Perez, Gangnet, Blake 2003, https://doi.org/10.1145/882262.882269

It is solved by conjugate gradients, preconditioned by one V-cycle of a multigrid whose coarse pixels are those that lie
in the region completely (2 x 2 each). About six steps do, whatever the size, so time is linear in the area.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-4  # of the residual, relative to the right-hand side: the solution is off by less than half a grey level
MOST_STEPS = 100
DAMPING = np.float32(0.8 / 4)  # of a Jacobi step; 4 is the diagonal
SWEEPS = 2  # Jacobi steps before and after the coarser level


def seamless(under: np.ndarray, pasted: np.ndarray, region: np.ndarray, mixed: bool = False) -> np.ndarray:
    """`under` with `pasted` blended into it seamlessly.

    under, pasted: (h, w, c) float32. region: (h, w) bool; its pixels on the border of the array are left out.
    mixed: keep differences of `under` where they are larger. Returns (h, w, c) float32, not clipped.
    """
    region = region.copy()
    region[[0, -1]] = False
    region[:, [0, -1]] = False
    difference = pasted - under
    rhs = np.zeros_like(difference)
    for axis in (0, 1):
        near, far = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        w = difference[near] - difference[far]  # of each pixel to the one before
        if mixed:
            own = under[near] - under[far]
            w = np.where(np.abs(own) > np.abs(own + w), 0, w)
        rhs[near] += w
        rhs[far] -= w
    return under + solve(rhs, region)


def solve(rhs: np.ndarray, region: np.ndarray) -> np.ndarray:
    """u (h, w, c) float32 with 4 u(p) - sum of u(neighbours) = rhs(p) in the region, 0 elsewhere.

    region: (h, w) bool, False on the border of the array.
    """
    levels = [region[..., None].astype(np.float32)]
    while min(levels[-1].shape[:2]) > 3 and levels[-1].any():
        levels.append((_sums(levels[-1]) == 4).astype(np.float32))
    inside = levels[0]
    residual = rhs.astype(np.float32) * inside
    u = np.zeros_like(residual)
    limit = TOLERANCE**2 * _dot(residual, residual)
    step = _cycle(residual, levels)
    direction, product = step, _dot(residual, step)
    for _ in range(MOST_STEPS):
        if (_dot(residual, residual) <= limit).all():
            break
        image = _laplacian(direction) * inside
        alpha = _ratio(product, _dot(direction, image))
        u += alpha * direction
        residual = residual - alpha * image
        step = _cycle(residual, levels)
        product, before = _dot(residual, step), product
        direction = step + _ratio(product, before) * direction
    return u


def _cycle(rhs: np.ndarray, levels: list[np.ndarray]) -> np.ndarray:
    """About the solution: smooth, correct on the coarser level, smooth again; a symmetric, positive operation."""
    inside = levels[0]
    u = DAMPING * rhs * inside
    for _ in range(SWEEPS - 1):
        u += DAMPING * inside * (rhs - _laplacian(u))
    if len(levels) > 1:
        # Sums over 2 x 2 and repetition are each other's transposes, as conjugate gradients need it.
        coarse = _cycle(_sums((rhs - _laplacian(u)) * inside), levels[1:])
        u += inside * np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)[: u.shape[0], : u.shape[1]]
    for _ in range(SWEEPS):
        u += DAMPING * inside * (rhs - _laplacian(u))
    return u


def _laplacian(u: np.ndarray) -> np.ndarray:
    """4 u(p) - sum of u(neighbours); u is 0 outside the array."""
    out = 4 * u
    out[1:] -= u[:-1]
    out[:-1] -= u[1:]
    out[:, 1:] -= u[:, :-1]
    out[:, :-1] -= u[:, 1:]
    return out


def _sums(x: np.ndarray) -> np.ndarray:
    """(h, w, c) -> sums over 2 x 2 pixels; the array is continued by 0."""
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)))
    return x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each channel."""
    return (a * b).sum(axis=(0, 1), dtype=np.float64)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 for a channel that is solved already."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0).astype(np.float32)
