"""A Stable Diffusion pipeline of about a million random parameters, and a CLIP stub that goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

WORDS = ["a", "photo", "of", "hazelnut", "with", "crack", "deep", "scratch", "on", "it", "the", "long", "its", "shell"]
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> int:
    """A byte-pair encoding whose merges build the words from the left; returns the size of the vocabulary."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        whole, *rest = [*word[:-1], word[-1] + "</w>"]
        for part in rest:
            merges[whole, part] = None
            whole += part
            pieces.append(whole)
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return len(vocabulary)


def pipeline(folder: Path, seed: int = 0) -> Any:
    """vae, text_encoder, tokenizer, unet and scheduler of the public classes; pictures of 64 pixels, latents of 32."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = write_tokenizer(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=32, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
            attention_head_dim=8, norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(16, 32), latent_channels=4, norm_num_groups=8, sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
            )
        )  # fmt: skip
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".attn2.to_q." in name or ".attn2.to_k." in name:
                weight *= 4  # maps of random weights are flat
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    parts = {"vae": vae.eval(), "text_encoder": text.eval(), "unet": unet.eval()}
    return SimpleNamespace(tokenizer=tokenizer, scheduler=scheduler, **parts)


class StubClip:
    """Pictures by a convolution and a projection, sentences by the mean of their letters; random weights."""

    def __init__(self, seed: int = 0):
        import torch

        source = torch.Generator().manual_seed(seed)
        self.kernels = torch.randn(8, 3, 32, 32, generator=source) / 55
        self.projection = torch.randn(8 * 49, 16, generator=source)
        self.letters = torch.randn(256, 16, generator=source)

    def pictures(self, pixels: Any) -> Any:
        import torch
        import torch.nn.functional as F

        pixels = F.interpolate(pixels, (224, 224), mode="bicubic")
        return torch.conv2d(pixels - 0.5, self.kernels, stride=32).tanh().flatten(1) @ self.projection

    def sentences(self, sentences: list[str]) -> Any:
        import torch

        return torch.stack([self.letters[list(s.encode())].mean(dim=0) for s in sentences])


def picture(seed: int = 0, height: int = 64, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: a smooth ground with a disc on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    ground = 90 + 60 * np.sin(6 * x + rng.uniform(0, 6))[..., None] * rng.uniform(0.3, 1, 3)
    disc = np.hypot(y - 0.4, x - 0.4) < 0.25
    return np.clip(np.where(disc[..., None], rng.uniform(120, 220, 3), ground), 0, 255).astype(np.uint8)
