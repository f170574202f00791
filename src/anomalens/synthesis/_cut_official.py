"""CUT as the authors' code runs it, quirks included: what its published pictures were made with.

Letters as in `_cut_diffusion`, and c' embedding of the detailed prompt, n that of the normal prompt, j the position of
the anomaly word, N steps of the scheduler of which the last int(N gamma) are run, i number of the step run.

What it does that the paper does not say, or says otherwise:

* pictures are squeezed to a square of the checkpoint's native size;
* the update of the embedding before the first step takes a cosine along the words of something that is the same for
  every word: its gradient is zero, so nothing happens, and it only makes sense for one word. Where the normal prompt
  begins with the same words up to and with this one, it is rounding divided by zero, and throws the word far away;
* the weight of the attention loss is 0.5 i / int(N gamma), zero in the first step; the localisation-aware step size is
  computed and not used; the number of attended cells only decides whether the refinement is left out;
* thresholds are looked up at the number of the step, and only step 0 is below 10 and in the table;
* the first attention map of a step mixes the rows of the empty and of the given prompt;
* its scheduler (PLMS) is started in the middle of its list but repeats its second step as if it were at the beginning:
  what the second step did to z is lost, and the picture keeps the noise of one step;
* outside of the mask z is put back at the noise level of the step that was just left.

Gradients do not go through earlier updates: they are of first order, so the values are those of the authors' code, whose
graph grows with every inner iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import WrongInput
from ._cut_diffusion import CELLS, Diffusion, smoothed

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING_STEPS, EMBEDDING_STEP = 20, 0.1
REFINEMENTS = 5
FEWEST, MOST = 10, 50  # attended cells between which the refinement is left out

Trace = Callable[..., None]  # trace(event, **values)


@dataclass
class Official:
    """The stages of one generation, each of which can be run on its own.

    judge: sees pictures and sentences in one space, see `cut.Judge`. index: j. last: as in `smoothed`.
    thresholds: step to the highest attention that is called low. scale: of the steps of the refinement.
    """

    diffusion: Diffusion
    judge: Any
    detailed_prompt: str
    index: int
    steps: int = 200
    strength: float = 0.3
    guidance: float = 12.5
    scale: float = 50.0
    thresholds: Mapping[int, float] | None = None
    inner: int = 10
    last: int = -1
    trace: Trace = lambda event, **values: None

    def __post_init__(self) -> None:
        import torch

        self.count = int(self.steps * self.strength)
        if self.count == 0:
            raise WrongInput(
                f"mode='official' runs int(steps * strength) = int({self.steps} * {self.strength:g}) = 0 steps, and its "
                "weights divide by that; give more steps or strength, or use mode='clean'."
            )
        if self.diffusion.native not in [CELLS * stride for stride in self.diffusion.strides]:
            raise WrongInput(
                f"mode='official' looks at {CELLS} x {CELLS} places, which a U-Net for {self.diffusion.native} latent "
                "cells does not have; use mode='clean'."
            )
        self.localising = True  # the refinement has not been ruled out
        self.schedule = type(self.diffusion.scheduler).from_config(self.diffusion.scheduler.config)
        self.schedule.set_timesteps(self.steps, device=self.diffusion.device)
        if float(self.schedule.init_noise_sigma) != 1:
            raise WrongInput(
                f"mode='official' does not scale what the U-Net sees, which {type(self.schedule).__name__} wants; use a "
                "checkpoint with PNDMScheduler, or mode='clean'."
            )
        self.start = self.steps - self.count
        self.timesteps = self.schedule.timesteps[self.start :]
        self.scales = torch.linspace(1.0, 0.5, len(self.schedule.timesteps))

    def run(
        self, picture: np.ndarray, c: Tensor, detailed: Tensor, normal: Tensor, mask: Tensor | None, noise: Any
    ) -> Any:
        """z after the last step, and A of the given prompt averaged over the last 30 % of the steps.

        picture: (H, W, 3) uint8, square. mask: (1, 1, h, w) of z, 1 where the defect may be. noise: name and z to
            standard normal noise; names are vae_sample, start_noise and blend_noise.
        """
        source = self.diffusion.encode(picture, noise("vae_sample"))
        z = self.schedule.add_noise(source, noise("start_noise"), self.timesteps[:1])
        self.trace("start", latent_source=source, latent_start=z, timesteps_all=self.schedule.timesteps,
                   timesteps_run=self.timesteps, t_start=self.start)  # fmt: skip
        c = self.initial_update(c, detailed, normal)
        looked = []
        for i, t in enumerate(self.timesteps):
            z, c, loss = self.optimise(i, t, z, c, detailed)
            if self.refines(i, loss):
                z = self.refine(i, t, z, c)
            before = z
            epsilon, attention = self.diffusion.guided(z, t, c, self.guidance)
            stepped = self.schedule.step(epsilon, t, z).prev_sample
            z = self.blend(stepped, source, mask, noise("blend_noise"), t)
            looked.append(attention[-1, ..., self.index])
            self.trace("step", step=i, noise_prediction=epsilon, latent_before_step=before, latent_after_step=stepped,
                       latent_after_blend=z)  # fmt: skip
        tail = looked[-max(1, round(0.3 * len(looked))) :]
        return z, sum(tail) / len(tail)

    def initial_update(self, c: Tensor, detailed: Tensor, normal: Tensor) -> Tensor:
        """Meant to turn the anomaly word towards what the detailed prompt adds; it does nothing, see above."""
        import torch

        j = slice(self.index, self.index + 1)
        origin = normal.mean(dim=0, keepdim=True)
        towards = detailed.mean(dim=0, keepdim=True) - origin  # (1, 77, d)
        for _ in range(EMBEDDING_STEPS):
            word = c[:, j].detach().requires_grad_()
            away = word.mean(dim=0, keepdim=True) - origin[:, j]  # (1, 1, d)
            loss = 1 - torch.cosine_similarity(away, towards, dim=1).mean()
            (gradient,) = torch.autograd.grad(loss, word)
            c = c.clone()
            c[:, j] -= EMBEDDING_STEP * gradient
        self.trace("embedding", embedding=c)
        return c

    def optimise(self, i: int, t: Tensor, z: Tensor, c: Tensor, detailed: Tensor) -> tuple[Tensor, Tensor, float]:
        """The inner iterations of step i: z, c and the attention loss of the last one, before its update."""
        import torch

        rate = max(1e-4, 0.02 - 1e-4 * i)
        attention = self.diffusion.guided(z, t, c, self.guidance)[1].mean(dim=0)  # rows mixed
        value = 0.0
        for k in range(self.inner):
            z, c = z.detach().requires_grad_(), c.detach().requires_grad_()
            self.count_attended(attention)
            with torch.enable_grad():
                image_loss = self.image_loss(z) if i > 0.7 * self.count else torch.zeros((), device=z.device)
                looked = self.diffusion(z, t, c[1:])[1][0]
                map_ = smoothed(looked, self.index, self.last)
                attention_loss = (1 - map_.max()).clamp(min=0)
                loss = 0.1 * image_loss + 0.5 * (i / self.count) * attention_loss
                prompt_loss = 1 - torch.cosine_similarity(c, detailed, dim=1).mean()
            gradient, through = torch.autograd.grad(loss, (z, c), retain_graph=True)
            (towards,) = torch.autograd.grad(prompt_loss, c)
            self.trace(
                "inner", step=i, iteration=k, attention=attention, attention_text=looked.detach(), map_text=map_.detach(),
                max_attention=map_.max().detach(), L_att=attention_loss.detach(), L_img=image_loss.detach(),
                J=loss.detach(), J_embedding=(loss + prompt_loss).detach(), latent_step_size=2 * rate,
                grad_latent=gradient,
            )  # fmt: skip
            z, c = z.detach() - 2 * rate * gradient, c.detach() - rate * (through + towards)
            attention, value = looked.detach(), float(attention_loss.detach())
        self.trace("optimised", step=i, latent=z, embedding=c)
        return z, c, value

    def count_attended(self, attention: Tensor) -> None:
        map_ = smoothed(attention, self.index, self.last)
        attended = int((map_ / map_.max() > (map_ / map_.max()).mean()).sum())
        if FEWEST < attended < MOST:
            self.localising = False

    def image_loss(self, z: Tensor) -> Tensor:
        """1 - cosine between the picture that z is now and the detailed prompt."""
        import torch

        picture = self.judge.pictures(self.diffusion.decode(z))
        return 1 - torch.cosine_similarity(picture, self.wanted).mean()

    @cached_property
    def wanted(self) -> Tensor:
        import torch

        with torch.no_grad():
            return self.judge.sentences([self.detailed_prompt])

    def refines(self, i: int, loss: float) -> bool:
        table = self.thresholds or {}
        return i < 10 and self.localising and i in table and loss > 1 - table[i]

    def refine(self, i: int, t: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Five steps on z whatever the loss, then a larger one."""
        import torch

        scale = float(self.scales[i])
        sizes = [self.scale * math.sqrt(scale / 10)] * REFINEMENTS + [self.scale * math.sqrt(scale)]
        for k, size in enumerate(sizes):
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                looked = self.diffusion(z, t, c[1:])[1][0]
                map_ = smoothed(looked, self.index, self.last)
                loss = (1 - map_.max()).clamp(min=0)
            (gradient,) = torch.autograd.grad(loss, z)
            z = z.detach() - size * gradient
            self.trace("refine", step=i, iteration=k, latent=z, loss=loss.detach(), step_size=size,
                       max_attention=map_.max().detach())  # fmt: skip
        return z

    def blend(self, z: Tensor, source: Tensor, mask: Tensor | None, noise: Tensor, t: Tensor) -> Tensor:
        """z inside of the mask, the noised source outside."""
        if mask is None:
            return z
        return mask * z + (1 - mask) * self.schedule.add_noise(source, noise, t.reshape(1))
