"""CUT: defects painted into a normal picture by a frozen Stable Diffusion, as a sentence describes them.

    from anomalens.synthesis.cut import AnomalyRequest, Cut
    cut = Cut.from_local("stable-diffusion-v1-5")                       # a folder; nothing is downloaded
    made = cut.generate(AnomalyRequest.of(picture, "hazelnut", "crack"))    # made.image, made.mask, made.accepted

The paper's letters: N steps, gamma strength, z latent, t timestep, c embedding of the prompt, c' of the detailed one, n of
the normal one, m mask, A^j attention to the word j, Phi CLIP. Classifier-free guidance w. i is the number of the step run.

Two modes. "clean", the default, does what the paper means; what is ours in it is in the card. "official" does what the
authors' code does, number for number, see `_cut_official`.

Sun, Cao, Dong, Fink 2025, "Unseen Visual Anomaly Generation", https://arxiv.org/abs/2406.01078
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ..detector import check_settings
from ..errors import NotMade, OutOfMemory, Unreadable, WrongInput
from ..images import to_8bit, to_float
from ..types import MakerCard, Sample
from ._cut_batch import Progress, Summary, read, run
from ._cut_diffusion import CELLS, ClipJudge, Diffusion, Precision, load, out_of_memory, smoothed
from ._cut_paste import PasteGenerator
from ._cut_pictures import (
    Fit,
    PseudoMask,
    Square,
    blurred,
    ic_lpips,
    inception_score,
    mask_attention_iou,
    placed_ellipse,
    pseudo_mask,
)
from ._cut_request import Anomaly, AnomalyRequest, GeneratedAnomaly, concluded, prompts, propose
from ._maker import VISIBLE, Maker, Range, closed, finish, grow, is_grey, pictures_of, where_allowed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Anomaly", "AnomalyRequest", "Cut", "GeneratedAnomaly", "Judge", "PasteGenerator", "Progress", "PseudoMask", "Summary",
    "ic_lpips", "inception_score", "mask_attention_iou", "prompts", "propose", "pseudo_mask", "read", "run",
]  # fmt: skip

LOG = logging.getLogger("anomalens")

CARD = MakerCard(
    title="CUT (AnomalyAny)",
    summary="what a sentence describes, painted by a frozen Stable Diffusion that starts from the normal picture",
    source="Sun, Cao, Dong and Fink 2025, https://arxiv.org/abs/2406.01078",
    severity="strength: share of the diffusion that is run again, half of the severity",
    levels=("structural",),
    needs="the folder of a Stable Diffusion 1.x or 2.x checkpoint, and a CLIP",
    extras=("diffusion", "clip"),
    differs="default mode: any square resolution, padded or cropped instead of squeezed; several words; attention of the "
    "prompt alone; DDIM steps, as PLMS cannot be started in the middle; 4 inner iterations that keep no graph; the "
    "localisation-aware weight is used; CLIP sees the predicted clean picture; outside of the mask z is put back at the "
    "level of the next step; pseudo masks and the filter are ours. mode='official' equals the authors' code",
    limits="a minute or two for a picture on a GPU; one or two words say little of logical defects; a small strength "
    "changes nothing, a large one changes the object",
)

GAMMA = 0.5  # strength at severity 1; the paper's 0.25 and its code's 0.3 are severity 0.5 and 0.6
EMBEDDING_STEPS, EMBEDDING_STEP = 20, 0.1
LAMBDA = 0.5  # of the attention loss
IMAGE_WEIGHT, TAIL = 0.1, 0.3  # of the CLIP loss, and the share of the last steps that have it
ENOUGH = 0.2  # attention loss at which the inner iterations stop
FARTHEST = 0.1  # of the length of z, that one update may move it
LOOK = 256  # pixels that CLIP is shown at most
BOOST = 1024.0  # of losses in float16, whose gradients would vanish
FEATHER = 1.5  # pixels, of the edge of what a maker puts into the picture
TRIES = 3
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "set_alpha_to_one",
            "steps_offset", "prediction_type", "timestep_spacing", "rescale_betas_zero_snr")  # fmt: skip

# settings that are in the request, or have no effect on the picture
ELSEWHERE = ("size", "severity", "where", "weights", "device", "checkpointing", "filtered", "bank", "object_name", "phrase",
             "prompt", "detailed_prompt")  # fmt: skip

Trace = Callable[..., None]  # trace(event, **values); tensors are detached
Noise = Callable[[str], Any]


class Judge(Protocol):
    """CLIP, as CUT uses it. pictures: (B, 3, H, W) in [0, 1] to (B, E), gradients pass; sentences: to (n, E)."""

    def pictures(self, pixels: Any) -> Any: ...

    def sentences(self, sentences: list[str]) -> Any: ...


# --- the paper --------------------------------------------------------------------------------------------------------


@dataclass
class Clean:
    """The stages of one generation, as the paper means them. words: positions j of the anomaly words."""

    diffusion: Diffusion
    judge: Judge | None
    normal_prompt: str
    detailed_prompt: str
    words: tuple[int, ...]
    steps: int = 100
    strength: float = 0.3
    guidance: float = 7.5
    scale: float = 20.0
    inner: int = 4
    last: int = -1
    trace: Trace = lambda event, **values: None

    def __post_init__(self) -> None:
        import torch
        from diffusers import DDIMScheduler

        known = self.diffusion.scheduler.config
        # named one by one: from_config takes what the checkpoint left at its default for this class's own default
        self.schedule = DDIMScheduler(**{k: known[k] for k in SCHEDULE if k in known}, clip_sample=False)
        self.schedule.set_timesteps(self.steps, device=self.diffusion.device)
        self.count = int(self.steps * self.strength + 1e-9)
        self.timesteps = self.schedule.timesteps[self.steps - self.count :]
        self.tail = max(1, round(TAIL * self.count))  # steps
        self.attended: int | None = None  # n at the first step
        self.boost = BOOST if self.diffusion.unet.dtype == torch.float16 else 1.0

    def run(
        self, picture: np.ndarray, c: Tensor, detailed: Tensor, normal: Tensor, mask: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor | None]:
        """z after the last step, and A^j averaged over the words and the last 30 % of the steps.

        picture: (R, R, 3) uint8. mask: m (1, 1, h, w) of 0 and 1. noise: a name to standard normal noise like z.
        """
        source = self.diffusion.encode(picture)
        if not self.count:
            return source, None
        # Test-time normal-sample conditioning: start from the normal picture at the noise level of t_start.
        z = self.schedule.add_noise(source, noise("start_noise"), self.timesteps[:1])
        self.trace("start", latent_source=source, latent_start=z, timesteps_run=self.timesteps)
        c = self.refine_embedding(c, detailed, normal)
        looked = []
        for i, t in enumerate(self.timesteps):
            z = self.optimise(i, t, z, c, mask)
            epsilon, attention = self.diffusion.guided(z, t, c, self.guidance)
            stepped = self.schedule.step(epsilon, t, z).prev_sample
            before, z = z, self.blend(i, stepped, source, mask, noise)
            looked.append(attention[-1, ..., list(self.words)].mean(dim=-1))
            self.trace("step", step=i, noise_prediction=epsilon, latent_before_step=before, latent_after_step=stepped,
                       latent_after_blend=z)  # fmt: skip
        return z, sum(looked[-self.tail :]) / self.tail

    def refine_embedding(self, c: Tensor, detailed: Tensor, normal: Tensor) -> Tensor:
        """Prompt-guided refinement: turn c_j, seen from the mean word of the normal prompt, to the mean word of c'.

        Each of 20 steps moves a word by 0.1, whatever the gradient's length, and leaves it as long as it was.
        """
        import torch

        origin = self.mean_word(self.normal_prompt, normal)
        goal = self.mean_word(self.detailed_prompt, detailed)
        j = list(self.words)
        words = c[1, j].detach()
        length = words.norm(dim=-1, keepdim=True)
        for k in range(EMBEDDING_STEPS):
            words = words.requires_grad_()
            with torch.enable_grad():
                loss = (1 - torch.cosine_similarity(words - origin, goal - origin, dim=-1)).mean()
            (gradient,) = torch.autograd.grad(loss, words)
            self.trace("embedding", iteration=k, L_prompt=loss.detach(), gradient=gradient)
            words = words.detach() - EMBEDDING_STEP * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            words = words * length / words.norm(dim=-1, keepdim=True)
        c = c.clone()
        c[1, j] = words
        return c

    def mean_word(self, prompt: str, embedding: Tensor) -> Tensor:
        """(d,) mean over the words of a sentence, without start, end and padding."""
        return embedding[1, 1 : 1 + max(1, len(self.diffusion.words(prompt)))].mean(dim=0)

    def optimise(self, i: int, t: Tensor, z: Tensor, c: Tensor, mask: Tensor | None) -> Tensor:
        """Attention-guided optimisation: K updates of z by the gradient of L = L_img + alpha_i L_att.

        L_att = mean over j of 1 - max(A_t^j * m). L_img = 1 - cos(Phi_T(c'), Phi_V(picture)), in the last 30 % of the
        steps. alpha_i = lambda (1 + i / n_steps) n_i / n_0, which falls as the attended cells n_i become fewer.
        """

        for k in range(self.inner):
            gradient = self.gradient(i, k, t, z.detach(), c, mask)
            if gradient is None:
                break
            z = self.moved(z, gradient)
        return z

    def gradient(self, i: int, k: int, t: Tensor, z: Tensor, c: Tensor, mask: Tensor | None) -> Tensor | None:
        """Of L by z, in inner iteration k; None where the words are looked at enough. The graph ends here."""
        import torch
        import torch.nn.functional as F

        sees = self.judge is not None and i >= self.count - self.tail
        z = z.requires_grad_()
        with torch.enable_grad():
            said, attention = self.diffusion(z, t, c[1:])
            maps = torch.stack([smoothed(attention[0], j, self.last) for j in self.words])
            if mask is not None:
                maps = maps * F.adaptive_max_pool2d(mask, maps.shape[-2:])[0, 0]
            attention_loss = (1 - maps.amax(dim=(1, 2))).mean()
            attended = self.count_attended(maps.detach().mean(dim=0))
            self.attended = self.attended or attended
            alpha = LAMBDA * (1 + i / self.count) * attended / self.attended
            image_loss = self.image_loss(z, said.detach(), t) if sees else torch.zeros((), device=z.device)
            loss = IMAGE_WEIGHT * image_loss + alpha * attention_loss
        self.trace(
            "inner", step=i, iteration=k, attention=attention[0].detach(), maps=maps.detach(), alpha=alpha,
            L_att=attention_loss.detach(), L_img=image_loss.detach(), L=loss.detach(),
        )  # fmt: skip
        if attention_loss < ENOUGH and not sees:
            return None
        return torch.autograd.grad(loss * self.boost, z)[0] / self.boost

    def moved(self, z: Tensor, gradient: Tensor) -> Tensor:
        """z - scale x gradient, by at most a tenth of the length of z; z itself where float16 overflowed."""
        if not gradient.isfinite().all():
            self.boost /= 4
            return z
        step = self.scale * gradient
        return z - step * (FARTHEST * z.norm() / step.norm().clamp(min=1e-12)).clamp(max=1)

    @staticmethod
    def count_attended(map_: Tensor) -> int:
        """n: cells of more than average attention; at least 1."""
        return max(1, int((map_ > map_.mean()).sum()))

    def image_loss(self, z: Tensor, said: Tensor, t: Tensor) -> Tensor:
        """1 - cosine between the detailed prompt and the clean picture that z points to, at 256 pixels or less."""
        import torch
        import torch.nn.functional as F

        clean = self.schedule.step(said, t, z).pred_original_sample
        most = LOOK // self.diffusion.factor
        if clean.shape[-1] > most:
            clean = F.interpolate(clean, (most, most), mode="bilinear", antialias=True)
        seen = self.judge.pictures(self.diffusion.decode(clean))  # type: ignore[union-attr]
        return 1 - torch.cosine_similarity(seen, self.wanted).mean()

    @cached_property
    def wanted(self) -> Tensor:
        import torch

        with torch.no_grad():
            return self.judge.sentences([self.detailed_prompt])  # type: ignore[union-attr]

    def blend(self, i: int, z: Tensor, source: Tensor, mask: Tensor | None, noise: Noise) -> Tensor:
        """m z + (1 - m) z_normal, the latter as noisy as z is now: as at the next timestep, clean after the last."""
        if mask is None:
            return z
        if i + 1 < self.count:
            source = self.schedule.add_noise(source, noise("blend_noise"), self.timesteps[i + 1 : i + 2])
        return mask * z + (1 - mask) * source


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass
class Cut(Maker):
    """See the card. As a maker it paints inside an ellipse of the size asked for, and keeps what was found in there.

    weights: folder of a checkpoint in the layout of diffusers, or organisation/name in the hub's cache. clip: CLIP of
        `backbones.clip`, "" for none. object_name: what is on the pictures, "" for the category of the sample. phrase,
        prompt, detailed_prompt: the words of the defect, in prompts `{object}` for the object; phrase "" draws from the
        bank. bank: a YAML file of prompts, "" for the package's.
    image_size: R in pixels, for mode clean. fit: how other shapes become square. steps N, guidance w, inner K, scale of
        the updates of z: None is what the mode has. thresholds: of mode official. checkpointing: compute activations
        twice instead of keeping them. filtered: as a maker, paint again what the filter rejects, 3 times in all.

    Raises:
        WrongInput: a setting out of its range.
    """

    size: Range = (0.2, 0.5)
    severity: Range = (0.4, 1.0)
    weights: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    clip: str = "clip:ViT-L-14"
    object_name: str = ""
    phrase: str = ""
    prompt: str = ""
    detailed_prompt: str = ""
    bank: str = ""
    mode: Literal["clean", "official"] = "clean"
    image_size: int = 512
    fit: Fit = "pad"
    steps: int | None = None
    guidance: float | None = None
    inner: int | None = None
    scale: float | None = None
    thresholds: tuple[tuple[int, float], ...] = ((0, 0.05), (10, 0.5), (20, 0.8))
    precision: Precision = "auto"
    device: str = "auto"
    checkpointing: bool = True
    filtered: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self.name, type(self), {k: getattr(self, k) for k in ("mode", "fit", "precision")})
        self.thresholds = tuple(dict(self.thresholds).items())
        for setting, least in (("steps", 1), ("inner", 0), ("scale", 0), ("guidance", 0), ("image_size", 1)):
            value = getattr(self, setting)
            if value is not None and value < least:
                raise WrongInput(f"cut setting {setting} is at least {least}; got {value:g}.")

    @classmethod
    def from_local(cls, path: str | Path, **settings: Any) -> Cut:
        """With the checkpoint in a folder, or in the hub's cache; it is read now.

        Raises:
            MissingExtra: a library is not installed. MissingWeights: a file of the checkpoint is not there.
        """
        cut = cls(weights=str(path), **settings)
        cut.diffusion  # noqa: B018  read now, so that what is missing is said here
        return cut

    @classmethod
    def from_pipeline(cls, pipeline: Any, *, clip: Judge | str | None = None, **settings: Any) -> Cut:
        """With a pipeline of yours (vae, text_encoder, tokenizer, unet, scheduler), where and in what precision it is.

        clip: a `Judge`, a name as in the settings, or None for none.
        """
        name = clip if isinstance(clip, str) else ""
        cut = cls(weights="", clip=name, **settings)
        cut.__dict__["diffusion"] = Diffusion.of(pipeline)
        if clip is not None and not name:
            if not all(hasattr(clip, what) for what in ("pictures", "sentences")):
                raise WrongInput(
                    f"clip= is a name such as 'clip:ViT-L-14', or has pictures(pixels) and sentences(list) as Judge says; "
                    f"got {type(clip).__name__}."
                )
            cut.__dict__["judge"] = clip
        return cut

    @cached_property
    def diffusion(self) -> Diffusion:
        return load(self.weights, self.precision, self.device)

    @cached_property
    def judge(self) -> Judge | None:
        if not self.clip:
            return None
        # the authors' torch did not filter before it made a picture smaller
        return ClipJudge(self.clip, str(self.diffusion.device.type), antialias=self.mode == "clean")

    def described(self) -> dict[str, Any]:
        """Settings, and which checkpoint under which licence."""
        checkpoint = {"sha256": self.diffusion.fingerprint, "licence": self.diffusion.licence}
        settings = {k: v for k, v in self.settings().items() if k not in ELSEWHERE}
        settings["clip"] = self.clip or (type(self.judge).__name__ if self.judge else "")
        return {"generator": "cut", "settings": settings, "checkpoint": checkpoint}

    # --- one picture --------------------------------------------------------------------------------------------------

    def generate(
        self,
        request: AnomalyRequest,
        *,
        noise: Noise | None = None,
        trace: Trace | None = None,
        report: Progress | None = None,
    ) -> GeneratedAnomaly:
        """Paint the defect.

        noise: a name (vae_sample, start_noise, blend_noise) to standard normal noise like z, instead of what the seed
            gives. trace: told of every stage: start, embedding, inner, optimised, refine, step, end. report: told of
            every step; figures are left (seconds) and loss (of attention).

        Raises:
            WrongInput: the phrase is not in the prompt (the message lists its tokens), the size does not fit the network.
            OutOfMemory: the GPU is too small; the message says which settings need less.
            NotMade: the numbers left the range of the precision.
            MissingExtra, MissingWeights: as `from_local`.
        """
        diffusion = self.diffusion  # says what is missing, torch too
        import torch

        official = self.mode == "official"
        side = diffusion.native * diffusion.factor if official else self.image_size
        if side % diffusion.multiple:
            fits = max(1, round(side / diffusion.multiple)) * diffusion.multiple
            raise WrongInput(f"image_size={side} does not fit this U-Net; it must be a multiple of {diffusion.multiple}, "
                             f"such as {fits}.")  # fmt: skip
        square = Square(request.image.shape[0], request.image.shape[1], side, "squeeze" if official else self.fit)
        source = square.put(request.image)
        words = request.positions or diffusion.find(request.prompt, request.anomaly_phrase, request.occurrence)
        if not all(1 <= j <= len(diffusion.words(request.prompt)) for j in words):
            tokens = diffusion.spelled(diffusion.words(request.prompt))
            raise WrongInput(f"positions={words} must be those of words, 1 to {len(tokens)}; the tokens are {tokens}.")
        clock = _Clock(report, trace)
        mask = self._latent_mask(request, square)
        try:
            stages = self._stages(request, words, clock)
            clock.begin(len(stages.timesteps))
            cells = CELLS if official else diffusion.cells(side)
            plain = (
                official and diffusion.unet.dtype == torch.float32
            )  # in half precision rounding hides the difference
            with diffusion.borrowed(cells, self.checkpointing and not official, plain):
                c, detailed, normal = (
                    diffusion.embed(p) for p in (request.prompt, request.detailed_prompt, request.normal_prompt)
                )
                noise = noise or _noise(request.seed, side // diffusion.factor, diffusion, official)
                z, attention = stages.run(source, c, detailed, normal, mask, noise)
                with torch.no_grad():
                    picture = diffusion.decode(z)
            if not picture.isfinite().all():
                raise NotMade(
                    f"no picture came of the networks, whose numbers left the range of {str(diffusion.unet.dtype)[6:]}; give "
                    "precision='bfloat16' or 'float32', or fetch the checkpoint again where they do so in float32."
                )
            clock("end", image=picture)
            made = (picture[0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
            gain = self._gain(made, source, request)
        except out_of_memory() as error:
            raise OutOfMemory(self._advice(side)) from error
        if attention is None:
            attention = torch.zeros(diffusion.cells(side), diffusion.cells(side))
        return concluded(request, square, source, made, attention.float().cpu().numpy(), gain)

    def _stages(self, request: AnomalyRequest, words: tuple[int, ...], trace: Trace) -> Any:
        last = self.diffusion.last(request.prompt)
        settings = ("steps", "guidance", "inner", "scale")
        given: dict[str, Any] = {k: getattr(self, k) for k in settings if getattr(self, k) is not None}
        most = self.diffusion.scheduler.config.num_train_timesteps
        if given.get("steps", 0) > most:
            raise WrongInput(f"cut setting steps={self.steps} is more than the {most} timesteps of the checkpoint.")
        if self.mode == "clean":
            return Clean(
                self.diffusion, self.judge, request.normal_prompt, request.detailed_prompt, words,
                strength=request.strength, last=last, trace=trace, **given,
            )  # fmt: skip
        from ._cut_official import Official

        if len(words) != 1:
            raise WrongInput(
                f"mode='official' works with one token; {request.anomaly_phrase!r} has {len(words)}: use mode='clean', or "
                "another word."
            )
        if self.judge is None:
            raise WrongInput("mode='official' needs a CLIP; give clip='clip:ViT-L-14', or a Judge to from_pipeline.")
        return Official(
            self.diffusion, self.judge, request.detailed_prompt, words[0], strength=request.strength, last=last,
            thresholds=dict(self.thresholds), trace=trace, **given,
        )  # fmt: skip

    def _latent_mask(self, request: AnomalyRequest, square: Square) -> Any:
        """m (1, 1, h, w): cells most of which may change; None where all may."""
        import torch
        from PIL import Image

        cells = square.size // self.diffusion.factor
        if self.mode == "official":
            if request.mask is None:
                return None
            small = np.asarray(Image.fromarray(request.mask).resize((cells, cells), Image.Resampling.NEAREST))
        else:
            allowed = square.valid if request.mask is None else square.put(request.mask)
            if allowed.all():
                return None
            covered = allowed.reshape(cells, self.diffusion.factor, cells, self.diffusion.factor).mean(axis=(1, 3))
            small = covered > (0.5 if (covered > 0.5).any() else 0)
        return torch.from_numpy(small.astype(np.float32))[None, None].to(self.diffusion.device)

    def _gain(self, made: np.ndarray, source: np.ndarray, request: AnomalyRequest) -> float | None:
        """How much closer the picture came to the detailed prompt than to the normal one; None without CLIP."""
        import torch

        if self.judge is None:
            return None
        pixels = torch.from_numpy(np.stack([to_float(p) for p in (made, source)])).permute(0, 3, 1, 2)
        with torch.no_grad():
            seen = self.judge.pictures(pixels.to(self.diffusion.device))
            said = torch.cat([self.judge.sentences([p]) for p in (request.detailed_prompt, request.normal_prompt)])
            near = torch.cosine_similarity(seen[:, None], said[None], dim=-1)  # (made and source, detailed and normal)
        return float((near[0, 0] - near[0, 1]) - (near[1, 0] - near[1, 1]))

    def _advice(self, side: int) -> str:
        import torch

        smaller = [n for n in (512, 448, 384, 320, 256) if n < side and n % self.diffusion.multiple == 0]
        advice = []
        if self.mode == "official":
            advice.append("mode='clean', which keeps far less")
        elif not self.checkpointing:
            advice.append("checkpointing=True")
        if self.diffusion.unet.dtype == torch.float32:
            advice.append("precision='float16'")
        if self.mode == "clean" and smaller:
            advice.append(f"image_size={smaller[0]}")
        if self.judge is not None and self.mode == "clean":
            advice.append("clip='', which leaves out the CLIP loss")
        return (
            f"the GPU has no memory left for CUT at {side} pixels in {str(self.diffusion.unet.dtype)[6:]}; "
            f"use {', '.join(advice) or 'a larger one'}, or device='cpu'."
        )

    # --- many pictures ------------------------------------------------------------------------------------------------

    def requests(
        self, samples: Iterable[Sample], count: int, *, seed: int = 0, strength: float = 0.3
    ) -> Iterator[AnomalyRequest]:
        """`count` requests: pictures and defects of the bank take turns; request number k has seed + k."""
        sources = list(samples)
        if not sources:
            raise WrongInput("CUT got no normal pictures; give at least one.")
        for k, sample in zip(range(count), cycle(sources), strict=False):
            name = self._object(sample)
            known = self._anomalies(name)
            anomaly = known[(k // len(sources) + k % len(sources)) % len(known)]  # every pair comes
            try:
                picture = to_8bit(sample.image())
            except Unreadable as error:
                LOG.warning("left out: %s", error)
                continue
            yield AnomalyRequest.of(picture, name, anomaly, strength=strength, seed=seed + k, source_id=sample.id)

    def _object(self, sample: Sample) -> str:
        return self.object_name or sample.category.replace("_", " ") or "object"

    def _anomalies(self, object_name: str) -> tuple[Anomaly, ...]:
        if not self.phrase:
            return prompts(object_name, self.bank)
        known = {entry.name: entry for entry in prompts(object_name, self.bank)}
        entry = known.get(self.phrase) or Anomaly.of(self.phrase)
        detailed = self.detailed_prompt or ("" if self.prompt else entry.detailed)
        return (Anomaly(entry.name, entry.phrase, self.prompt or entry.prompt, detailed),)

    # --- as a maker ---------------------------------------------------------------------------------------------------

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with a painted defect; outside of its mask the picture is exactly as it was.

        Raises:
            NotMade: three generations showed nothing, or the filter rejected them. WrongInput: as every maker, and a
            sample with more than one picture, as each would show another defect.
        """
        pictures = pictures_of(sample)
        if len(pictures) > 1:
            raise WrongInput(
                f"sample {sample.id} has pictures {tuple(pictures)}; cut paints one: give it samples of one."
            )
        ((view, picture),) = pictures.items()
        allowed = where_allowed(self.where, pictures, sample.id)
        base = int(rng.integers(2**63))
        reason = ""
        for attempt in range(TRIES):
            own = np.random.default_rng([base, attempt])
            size, severity = (float(own.uniform(*r)) for r in (self.size, self.severity))
            cover = placed_ellipse(picture.shape[:2], round(size * min(picture.shape[:2])), allowed, own)
            place = cover > 0.5
            known = self._anomalies(self._object(sample))
            anomaly = known[int(own.integers(len(known)))]
            request = AnomalyRequest.of(
                to_8bit(picture), self._object(sample), anomaly, mask=place, strength=GAMMA * severity,
                seed=int(own.integers(2**31)), source_id=sample.id,
            )  # fmt: skip
            made = self.generate(request)
            if self.filtered and made.objections:
                reason = "; ".join(made.objections)
                continue
            after, mask = _put_in(made, picture, place)
            if not mask.any():
                reason = "nothing was found in it"
                continue
            notes = {"attempt": attempt, "anomaly": anomaly.name, "prompt": request.prompt, "detailed_prompt":
                     request.detailed_prompt, "strength": request.strength, "seed": request.seed, "mode": self.mode,
                     "checkpoint": self.diffusion.fingerprint, "licence": self.diffusion.licence,
                     "scores": dict(made.scores)}  # fmt: skip
            return finish(self, sample, pictures, {view: after}, mask, size, severity, notes, f"{base:016x}")
        raise NotMade(
            f"cut painted nothing of use into sample {sample.id} in {TRIES} generations ({reason}); try other words, another "
            "severity, or filtered=False."
        )


def _put_in(made: GeneratedAnomaly, picture: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The defect alone, its edge feathered, in the picture as it was, in its size and type; and where it can be seen."""
    painted, _, mask = made.placed()
    new = to_float(painted)
    if is_grey(picture):
        new = np.repeat(new.mean(axis=2, keepdims=True), 3, axis=2)
    old, top = to_float(picture), np.iinfo(picture.dtype).max
    cover = (blurred(grow(mask == 1, 2), FEATHER) * place)[..., None]
    after = np.rint((old + cover * (new - old)) * np.float32(top)).astype(picture.dtype)
    differs = np.abs(after.astype(np.int32) - picture).max(axis=2) >= VISIBLE * top / 255
    shown = closed(differs, 2) & place
    return np.where(shown[..., None], after, picture), shown


class _Clock:
    """Hands events on to the user's trace, and tells the user's report of every step and the time left."""

    def __init__(self, report: Progress | None, trace: Trace | None):
        self.report, self.trace = report, trace
        self.total, self.began, self.loss = 0, 0.0, float("nan")

    def begin(self, total: int) -> None:
        self.total, self.began = total, time.monotonic()
        if self.report is not None:
            self.report(0, total, {})

    def __call__(self, event: str, **values: Any) -> None:
        if self.trace is not None:
            self.trace(event, **values)
        if self.report is None:
            return
        if event == "inner":
            self.loss = float(values["L_att"])
        elif event == "step":
            done = values["step"] + 1
            left = (time.monotonic() - self.began) / done * (self.total - done)
            self.report(done, self.total, {"loss": self.loss, "left": left})


def _noise(seed: int, cells: int, diffusion: Diffusion, official: bool) -> Noise:
    """Standard normal noise by name, drawn on the CPU, so the same on every device.

    official: the authors draw the blend noise from torch's global stream; seed + 1 is what that stream is seeded with.
    """
    import torch

    first = torch.Generator().manual_seed(seed)
    second = torch.Generator().manual_seed(seed + 1) if official else first
    shape = (1, diffusion.unet.config.in_channels, cells, cells)

    def draw(name: str) -> Tensor:
        return torch.randn(shape, generator=second if name == "blend_noise" else first).to(diffusion.device)

    return draw


MAKER = Cut
