"""CUT: seconds and memory of one picture, with random weights of Stable Diffusion 1.5's full size. Needs a GPU.

python benchmarks/cut.py [--size 512] [--mode clean] [--small]      --small: tiny networks on the CPU, to try the script
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _common import table

CLIP = "clip:ViT-L-14?weights=random"


def full_size() -> Any:
    """The networks of Stable Diffusion 1.5, from their configurations; the tokenizer is that of the tests."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("cuda"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    parts = {name: part.to("cuda", torch.float16).eval() for name, part in parts.items()}
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return SimpleNamespace(**parts, scheduler=scheduler, tokenizer=tiny().tokenizer)


def tiny() -> Any:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.unit.synthesis._tiny_diffusion import pipeline

    return pipeline(Path(tempfile.mkdtemp()))


def main() -> None:
    import torch

    from anomalens.synthesis.cut import AnomalyRequest, Cut

    options = argparse.ArgumentParser()
    options.add_argument("--size", type=int, default=512)
    options.add_argument("--mode", choices=("clean", "official"), default="clean")
    options.add_argument("--small", action="store_true")
    asked = options.parse_args()
    on_gpu = torch.cuda.is_available() and not asked.small
    if not on_gpu and not asked.small:
        print("CUT at full size needs a GPU; none is here. `--small` tries the script.\n")
        return
    settings: dict[str, Any] = {"image_size": asked.size} if on_gpu else {"image_size": 64, "steps": 10}
    pipeline = full_size() if on_gpu else tiny()
    clip = CLIP if on_gpu else "clip:tiny?weights=random"
    picture = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    request = AnomalyRequest(
        picture, "hazelnut", "a photo of a hazelnut with a crack on it", "crack", "a photo of a hazelnut",
        "a photo of a hazelnut with a deep crack on its shell",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for checkpointing in (True, False):
        cut = Cut.from_pipeline(pipeline, clip=clip, mode=asked.mode, checkpointing=checkpointing, **settings)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        made = cut.generate(request)
        seconds = time.perf_counter() - began
        memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float("nan")
        rows.append((asked.mode, made.image.shape[0], checkpointing, seconds, memory))
    table(("mode", "pixels", "checkpointing", "seconds", "peak memory, GB"), rows)


if __name__ == "__main__":
    main()
