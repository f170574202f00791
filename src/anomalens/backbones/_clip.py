"""The two towers of CLIP in torch, written so that methods can reach inside: block outputs, and tokens put in between.

Parameter names are those of OpenAI's and open_clip's files. Letters: B pictures or sentences, N tokens, C width,
E dimension that pictures and sentences share. Radford et al. 2021, https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._clip_shape import MEAN, STD, Shape

Before = Callable[[int, Tensor], Tensor]


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), what OpenAI trained its networks with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention of (B, N, C), its three projections packed into one matrix."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        b, n, c = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # each (B, heads, N, .)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: nn.Module):
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.activation = activation

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    """Blocks, one after another, over (B, N, C)."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, activation: nn.Module):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_ratio, activation) for _ in range(layers))

    def forward(
        self, x: Tensor, *, causal: bool = False, taps: Sequence[int] = (), before: Before | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The last output, and the outputs of the blocks `taps` (1 is the first) in the order of the blocks.

        before: called with (block index from 0, its input); what it returns goes into the block instead. This is how
            a method adds, replaces or looks at tokens; it may change N.
        """
        tapped = []
        for index, block in enumerate(self.resblocks):
            if before is not None:
                x = before(index, x)
            x = block(x, causal)
            if index + 1 in taps:
                tapped.append(x)
        return x, tapped


class VisionTower(nn.Module):
    def __init__(self, shape: Shape, activation: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.width))
        self.positional_embedding = nn.Parameter(torch.empty(shape.grid**2 + 1, shape.width))
        self.ln_pre = nn.LayerNorm(shape.width)
        self.transformer = Transformer(shape.width, shape.layers, shape.heads, shape.mlp_ratio, activation)
        self.ln_post = nn.LayerNorm(shape.width)
        self.proj = nn.Parameter(torch.empty(shape.width, shape.embed))


class Clip(nn.Module):
    """Both towers, frozen. Gradients pass through to what `before` puts in.

    activation: "gelu" is exact, "quick_gelu" what OpenAI's networks were trained with. antialias: of the bicubic resize
    of the positions, for pictures of another size than the weights were trained on. precision: what the blocks run in,
    by autocast; weights stay float32.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        activation: Literal["gelu", "quick_gelu"] = "gelu",
        antialias: bool = False,
        precision: Literal["float32", "float16", "bfloat16"] = "float32",
    ):
        super().__init__()
        self.shape, self.antialias, self.precision = shape, antialias, precision
        act = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.visual = VisionTower(shape, act)
        self.transformer = Transformer(shape.text_width, shape.text_layers, shape.text_heads, shape.mlp_ratio, act)
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(shape.context, shape.text_width))
        self.ln_final = nn.LayerNorm(shape.text_width)
        self.text_projection = nn.Parameter(torch.empty(shape.text_width, shape.embed))
        self._positions: dict[tuple[int, int], Tensor] = {}
        self.name, self.fingerprint = "", ""  # what `load` was called with, and the sha256 of the weights
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.visual.proj.device

    def autocast(self) -> Any:
        """The precision asked for, as a context; float32 changes nothing."""
        chosen = getattr(torch, self.precision)
        return torch.autocast(self.device.type, dtype=chosen, enabled=self.precision != "float32")

    def normalise(self, images: Any) -> Tensor:
        """(B, 3, H, W) in [0, 1], numpy or torch, to what the tower takes, on its device."""
        x = torch.as_tensor(images, dtype=torch.float32).to(self.device)
        mean, std = (torch.tensor(v, device=self.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        return (x - mean) / std

    # --- pictures -----------------------------------------------------------------------------------------------------

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to the tokens of the first block (B, 1 + h w, C), class token first."""
        visual = self.visual
        patches = visual.conv1(pixels)
        positions = self.positions(patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        return visual.ln_pre(torch.cat([first, tokens], dim=1) + positions.to(tokens.dtype))

    def positions(self, h: int, w: int) -> Tensor:
        """(1 + h w, C) embeddings of the positions of a grid: bicubic where it is not the one of the weights."""
        learnt, grid = self.visual.positional_embedding, self.shape.grid
        if (h, w) == (grid, grid):
            return learnt
        held = self._positions.get((h, w))
        if held is None or held.device != learnt.device:
            square = learnt[1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
            sized = F.interpolate(square, (h, w), mode="bicubic", align_corners=False, antialias=self.antialias)
            held = torch.cat([learnt[:1], sized.flatten(2)[0].T]).detach()
            self._positions[h, w] = held
        return held

    def vision(
        self, tokens: Tensor, *, taps: Sequence[int] = (), before: Before | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens of `embed` through the blocks: last output and tapped ones, see `Transformer`."""
        return self.visual.transformer(tokens, taps=taps, before=before)

    def pool(self, tokens: Tensor) -> Tensor:
        """The last output (B, N, C) to picture features (B, E), not normalised."""
        return self.visual.ln_post(tokens[:, 0]) @ self.visual.proj

    # --- sentences ----------------------------------------------------------------------------------------------------

    def text(self, ids: Tensor, *, before: Before | None = None, whole: bool = False) -> Tensor:
        """Token ids (B, 77) to sentence features (B, E), not normalised.

        whole: run all 77 positions. Otherwise those behind the longest sentence, which cannot be seen from its end,
        are left out: same features, a fifth of the time.
        """
        ids = ids.to(self.device)
        end = ids.argmax(dim=-1)
        if not whole:
            ids = ids[:, : int(end.max()) + 1]
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x, _ = self.transformer(x, causal=True, before=before)
        return self.ln_final(x[torch.arange(len(x), device=x.device), end]) @ self.text_projection


def random_weights(clip: Clip, seed: int) -> None:
    """Fill all parameters as one would before training, without touching torch's global generator."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if parameter.ndim == 1:
                is_scale = name.endswith("weight")  # of a layer norm
                parameter.copy_(torch.full_like(parameter, float(is_scale)))
                if name.endswith("class_embedding"):
                    parameter.copy_(torch.randn(parameter.shape, generator=source) * parameter.numel() ** -0.5)
            else:
                fan_in = len(parameter) if name.endswith(("visual.proj", "projection")) else parameter[0].numel()
                std = 0.02 if "embedding" in name else fan_in**-0.5
                parameter.copy_(torch.randn(parameter.shape, generator=source) * std)
