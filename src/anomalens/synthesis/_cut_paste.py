"""CUT's interface without a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._cut_pictures import Fit, Square, blurred, placed_ellipse
from ._cut_request import AnomalyRequest, GeneratedAnomaly, concluded
from ._maker import Range
from .perlin import drawn_texture


@dataclass
class PasteGenerator:
    """The same interface without a network: an ellipse of drawn texture, for trying out what comes after.

    Its attention is the blurred truth. size: longest side of the ellipse, share of the square.
    """

    image_size: int = 512
    size: Range = (0.2, 0.4)
    fit: Fit = "pad"

    def generate(self, request: AnomalyRequest) -> GeneratedAnomaly:
        return self.with_truth(request)[0]

    def with_truth(self, request: AnomalyRequest) -> tuple[GeneratedAnomaly, np.ndarray]:
        """And the true mask (R, R) bool."""
        square = Square(request.image.shape[0], request.image.shape[1], self.image_size, self.fit)
        source = square.put(request.image)
        rng = np.random.default_rng(request.seed)
        allowed = square.valid if request.mask is None else square.put(request.mask)
        whole = placed_ellipse(allowed.shape, round(rng.uniform(*self.size) * self.image_size), allowed, rng)
        texture = drawn_texture(whole.shape, rng)
        made = np.rint(source + whole[..., None] * (texture.astype(np.float32) - source)).astype(np.uint8)
        cells = max(2, self.image_size // 32)
        soft = blurred(whole, self.image_size / cells)
        rows = np.linspace(0, self.image_size - 1, cells).round().astype(int)
        return concluded(request, square, source, made, soft[np.ix_(rows, rows)], None), whole > 0.5

    def described(self) -> dict[str, Any]:
        settings = {"image_size": self.image_size, "size": list(self.size), "fit": self.fit}
        return {"generator": "paste", "settings": settings, "checkpoint": {"sha256": None, "licence": "ours"}}
