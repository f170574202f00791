"""A Stable Diffusion pipeline as CUT uses it: words, pictures, latents, noise, and where the network looks at a word.

Letters: z latent (1, 4, h, w) float32; c embedding (2, 77, d) float32 of a prompt, row 0 that of the empty one; t timestep;
A (rows, s, s, 77), the cross-attention of s x s places to the words, mean over heads and layers.

Only the public classes of diffusers and transformers are used: an autoencoder, a text encoder with its tokeniser, a
conditional U-Net and a scheduler. Whatever is changed on the user's objects is put back.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import AnomalensError, MissingExtra, MissingWeights, OutOfMemory, WrongInput

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
INSTALL = "pip install 'anomalens[diffusion,clip]'"
CELLS = 16  # side of the attention maps at the size the network was trained on; Chefer et al. 2023
SHARPEN = 100  # of attention before the softmax over words
SIGMA = 0.5  # of the smoothing of a map, 3 x 3 cells

Precision = Literal["auto", "float32", "float16", "bfloat16"]


class Diffusion:
    """The five parts, on the device and in the precision they come in."""

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, *, licence: str = ""):
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer
        self.unet, self.scheduler, self.licence = unet, scheduler, licence or "unknown"
        self._taken: list[Tensor] = []
        self._taking = False

    @classmethod
    def of(cls, pipeline: Any) -> Diffusion:
        """Of anything with the five parts as attributes, such as a StableDiffusionPipeline.

        Raises:
            WrongInput: a part is missing, or is not of Stable Diffusion 1.x or 2.x.
        """
        missing = [part for part in PARTS if getattr(pipeline, part, None) is None]
        if missing:
            raise WrongInput(
                f"{type(pipeline).__name__} has no {', '.join(missing)}; CUT needs a Stable Diffusion pipeline with "
                f"{', '.join(PARTS)}."
            )
        refuse_unet(pipeline.unet.config, pipeline.vae.config)
        refuse_scheduler(pipeline.scheduler)
        return cls(**{part: getattr(pipeline, part) for part in PARTS})

    # --- sizes --------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> Any:
        return next(self.unet.parameters()).device

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def native(self) -> int:
        """Side, in latent cells, that the U-Net was trained on."""
        side = self.unet.config.sample_size
        return int(side if isinstance(side, int) else side[0])

    @property
    def multiple(self) -> int:
        """Pixels that a side must be a multiple of."""
        return self.factor * 2 ** (len(self.unet.config.down_block_types) - 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Latent cells per place, of the levels that look at words."""
        levels = self.unet.config.down_block_types
        found = [2**k for k, kind in enumerate(levels) if "CrossAttn" in kind]
        middle = self.unet.config.get("mid_block_type") or ""
        return tuple(dict.fromkeys([*found, *([2 ** (len(levels) - 1)] if "CrossAttn" in middle else [])]))

    def cells(self, size: int) -> int:
        """Side s of the attention maps for pictures of `size` pixels: the coarsest level with 16 or more at the native size.

        512 pixels give Stable Diffusion 16, 448 give 14, 768 give 24.
        """
        stride = max((k for k in self.strides if self.native // k >= CELLS), default=min(self.strides))
        return size // self.factor // stride

    # --- words --------------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """77, tokens that the text encoder reads; a tokenizer without its configuration knows no end."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def ids(self, prompt: str) -> Tensor:
        """(1, 77) token ids, start token first, padded."""
        how = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(prompt, **how).input_ids.to(self.device)

    def embed(self, prompt: str) -> Tensor:
        """c (2, 77, d) of a prompt, row 0 that of the empty one."""
        import torch

        with torch.no_grad():
            rows = [self.text_encoder(self.ids(text))[0] for text in ("", prompt)]
        return torch.cat(rows).float()

    def words(self, prompt: str) -> list[int]:
        """Token ids of a prompt without start and end.

        Raises:
            WrongInput: the prompt is longer than the text encoder reads.
        """
        ids = list(self.tokenizer(prompt, add_special_tokens=False).input_ids)
        room = self.length - 2
        if len(ids) > room:
            raise WrongInput(f"the prompt {prompt[:60]!r}... has {len(ids)} tokens; the text encoder reads {room}.")
        return ids

    def find(self, prompt: str, phrase: str, occurrence: int = -1) -> tuple[int, ...]:
        """Positions of the tokens of a phrase in a prompt; the start token is position 0.

        occurrence: which one where it stands there several times; -1 is the last.

        Raises:
            WrongInput: it is not in there; the message lists the tokens of the prompt.
        """
        sentence, wanted = self.words(prompt), self.words(phrase)
        starts = [i for i in range(len(sentence)) if wanted and sentence[i : i + len(wanted)] == wanted]
        if not starts or not -len(starts) <= occurrence < len(starts):
            tokens = " ".join(f"{i}:{token}" for i, token in enumerate(self.spelled(sentence), 1))
            times = f"{len(starts)} times in the prompt, without occurrence {occurrence}:"
            there = times if starts else "not in the prompt"
            raise WrongInput(
                f"the phrase {phrase!r} ({' '.join(self.spelled(wanted)) or 'no tokens'}) is {there} {prompt!r}; its tokens "
                f"are {tokens or 'none'}."
            )
        first = starts[occurrence] + 1
        return tuple(range(first, first + len(wanted)))

    def spelled(self, ids: Sequence[int]) -> list[str]:
        return [token.removesuffix("</w>") for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    def last(self, prompt: str) -> int:
        """Position behind the last token that attention is compared with: the end of the context; in Stable Diffusion
        2, whose padding differs from the end token, the end of the sentence."""
        return len(self.words(prompt)) + 1 if self.unet.config.cross_attention_dim == 1024 else -1

    # --- pictures -----------------------------------------------------------------------------------------------------

    def encode(self, picture: np.ndarray, noise: Tensor | None = None) -> Tensor:
        """z of a picture (H, W, 3) uint8: the mean of its posterior, or the sample that standard noise gives."""
        import torch

        x = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1
        with torch.no_grad():
            posterior = self.vae.encode(x.to(self.device, self.vae.dtype)).latent_dist
            z = posterior.mean.float()
            if noise is not None:
                z = z + posterior.std.float() * noise.to(self.device)
        return z * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """(1, 3, H, W) float32 in [0, 1]; gradients pass, but for what is clamped."""
        x = self.vae.decode((z / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
        return (x * 0.5 + 0.5).clamp(0, 1)

    # --- noise and attention ------------------------------------------------------------------------------------------

    def __call__(self, z: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """What the U-Net says of z, once for each row of c, and A; inside `borrowed` only."""
        import torch

        self._taken, self._taking = [], True
        try:
            rows = z.expand(len(c), -1, -1, -1).to(self.unet.dtype)
            said = self.unet(rows, t, encoder_hidden_states=c.to(self.unet.dtype)).sample.float()
        finally:
            self._taking, taken, self._taken = False, self._taken, []
        attention = torch.cat(taken, dim=1).mean(dim=1)  # (rows, s * s, 77)
        side = math.isqrt(attention.shape[1])
        return said, attention.unflatten(1, (side, side))

    def guided(self, z: Tensor, t: Tensor, c: Tensor, guidance: float) -> tuple[Tensor, Tensor]:
        """epsilon = epsilon_u + w (epsilon_c - epsilon_u) without gradients, and A of both rows. Ho and Salimans 2022."""
        import torch

        with torch.no_grad():
            said, attention = self(z, t, c)
        return said[:1] + guidance * (said[1:] - said[:1]), attention

    @contextmanager
    def borrowed(self, cells: int, checkpointing: bool = False, plain: bool = False) -> Iterator[None]:
        """Inside, attention of cells x cells places is kept, and the networks are frozen and in eval mode.

        checkpointing: activations of the U-Net are computed again for the gradient instead of being kept. plain: all
        attention by the textbook's steps, as the authors' code has it, instead of the fast kernel; equal but for rounding.
        """
        from diffusers.models.attention_processor import AttnProcessor

        processors = self.unet.attn_processors
        networks = (self.unet, self.vae, self.text_encoder)
        training = [network.training for network in networks]
        learning = [p for network in networks for p in network.parameters() if p.requires_grad]
        switch = checkpointing and not self.unet.is_gradient_checkpointing
        try:
            lookers = {k: _Look(self, AttnProcessor() if plain else old, cells**2) for k, old in processors.items()}
            self.unet.set_attn_processor(lookers)
            for network in networks:
                network.eval()
            for parameter in learning:
                parameter.requires_grad_(False)
            if switch:
                self.unet.enable_gradient_checkpointing()
            yield
        finally:
            self.unet.set_attn_processor(dict(processors))
            for network, was in zip(networks, training, strict=True):
                network.train(was)
            for parameter in learning:
                parameter.requires_grad_(True)
            if switch:
                self.unet.disable_gradient_checkpointing()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights of U-Net, autoencoder and text encoder."""
        digest = hashlib.sha256()
        for part in ("unet", "vae", "text_encoder"):
            for name, tensor in sorted(getattr(self, part).state_dict().items()):
                digest.update(f"{part} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                raw = tensor.detach().cpu().contiguous().flatten()
                digest.update(raw.view(_bytes()).numpy().data if raw.numel() else b"")
        return digest.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


class _Look:
    """An attention processor that keeps the attention from `places` places to words, and leaves the rest to the old one."""

    def __init__(self, diffusion: Diffusion, old: Any, places: int):
        self.diffusion, self.old, self.places = diffusion, old, places

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None,
        temb: Any = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        words, x = encoder_hidden_states, hidden_states
        if words is None or x.ndim != 3 or x.shape[1] != self.places:
            return self.old(attn, x, words, attention_mask, temb, *args, **kwargs)

        q, k, v = (attn.head_to_batch_dim(y) for y in (attn.to_q(x), attn.to_k(words), attn.to_v(words)))
        weights = attn.get_attention_scores(q.float(), k.float())  # (rows * heads, n, 77), float32 in any precision
        if self.diffusion._taking:  # not when activations are computed again for the gradient
            self.diffusion._taken.append(weights.unflatten(0, (len(x), -1)))
        mixed = attn.batch_to_head_dim(weights.to(v.dtype) @ v)
        out = attn.to_out[1](attn.to_out[0](mixed))
        return (out + x if attn.residual_connection else out) / attn.rescale_output_factor


def smoothed(attention: Tensor, index: int, last: int = -1) -> Tensor:
    """The map (s, s) of one word: its share among the words, blurred.

    attention: (s, s, 77), of one row. last: position behind the last word that it is compared with. Chefer et al. 2023
    (Attend-and-Excite), https://arxiv.org/abs/2301.13826; the width of the Gaussian is that of their code.
    """
    import torch
    import torch.nn.functional as F

    share = (SHARPEN * attention[..., 1:last]).softmax(dim=-1)[..., index - 1]
    density = 1 / (SIGMA * math.sqrt(2 * math.pi))  # divided out again; kept for the last bit of the authors' numbers
    line = density * torch.exp(-(((torch.arange(3, device=share.device) - 1) / (2 * SIGMA)) ** 2))
    kernel = line[:, None] * line
    padded = F.pad(share[None, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[0, 0]


# --- from files -------------------------------------------------------------------------------------------------------

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
AGAIN = "fetch the whole folder again, for example with `hf download ORGANISATION/NAME --local-dir FOLDER`"
SUITS = "CUT needs a Stable Diffusion 1.x or 2.x that paints from words alone"
OTHERS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


def need_diffusers() -> None:
    """Raises MissingExtra, with the command, where a library is missing."""
    needed = ("torch", "diffusers", "transformers")
    for name in needed:
        if find_spec(name) is None:
            raise MissingExtra(f"CUT needs {name}, which is not installed: {INSTALL}.")
    for name in needed:
        try:
            import_module(name)
        except ImportError as error:  # there, but of versions that do not fit together
            raise MissingExtra(f"CUT needs {name}, which does not load ({error}): {INSTALL}.") from None


def load(weights: str, precision: Precision = "auto", device: str = "auto") -> Diffusion:
    """A pipeline from a folder in the layout of diffusers, or from the hub's cache; nothing is downloaded.

    weights: the folder, or organisation/name. precision: "auto" is float16 on a GPU and float32 elsewhere. device: auto,
    cpu or cuda.

    Raises:
        MissingExtra: diffusers, transformers or torch is not installed. MissingWeights: a file or a weight is not there.
        WrongInput: a file cannot be read, or the checkpoint is of another kind. OutOfMemory: the GPU is too small.
    """
    need_diffusers()
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = _folder(weights)
    if device not in ("auto", "cpu", "cuda"):
        raise WrongInput(f"CUT got device {device!r}; choose 'auto', 'cpu' or 'cuda'.")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda" and not torch.cuda.is_available():
        raise WrongInput("CUT got device 'cuda', but torch sees no GPU; use device='cpu'.")
    kind = ("float16" if device == "cuda" else "float32") if precision == "auto" else precision
    parts: dict[str, Any] = {}
    with _reading(folder / "tokenizer"):
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    with _reading(folder / "scheduler"):
        parts["scheduler"] = _scheduler_class(folder).from_pretrained(folder / "scheduler", local_files_only=True)
    configs = []  # before the gigabytes
    for name in ("unet", "vae"):
        with _reading(folder / name):
            configs.append(dict(json.loads((folder / name / "config.json").read_text(encoding="utf-8"))))
    refuse_unet(*configs)
    refuse_scheduler(parts["scheduler"])
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for name, network in classes.items():
        how: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        if network is not CLIPTextModel:
            how["low_cpu_mem_usage"] = False  # it would need one more library
        if not _has(folder, name, ".safetensors"):
            how["variant"] = "fp16"
        with _reading(folder / name):
            loaded, found = network.from_pretrained(folder / name, torch_dtype=getattr(torch, kind), **how)
            if lacks := sorted(found["missing_keys"]):
                raise MissingWeights(
                    f"{folder / name} lacks {len(lacks)} of its weights, {lacks[0]} the first; {AGAIN}."
                )
            try:
                parts[name] = loaded.to(device).eval()
            except out_of_memory() as error:
                fits = "device='cpu'" if kind == "float16" else "precision='float16' or device='cpu'"
                raise OutOfMemory(f"the GPU has no room for the networks of {folder} in {kind}; use {fits}.") from error
    return Diffusion(**parts, licence=licence_of(folder))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says which folder cannot be read; diffusers, transformers, tokenizers, safetensors and json have an error each."""
    from ..backbones._onnx import first_line

    try:
        yield
    except AnomalensError:
        raise
    except Exception as error:
        raise WrongInput(f"{path} cannot be read ({first_line(error)}); {AGAIN}.") from error


def out_of_memory() -> type[Exception]:
    """What torch raises where a GPU is full."""
    import torch

    return getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


def refuse_unet(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raises WrongInput where latents, timestep and words are not all that a U-Net is told. Keys may be left out."""
    needs = [k for k in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
             if unet.get(k) is not None]  # fmt: skip
    if needs:
        raise WrongInput(f"this U-Net wants more than words ({needs[0]}={unet[needs[0]]!r}), as that of Stable Diffusion XL "
                         f"does; {SUITS}.")  # fmt: skip
    takes, gives = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if takes != gives:
        raise WrongInput(f"this U-Net takes {takes} channels and the autoencoder gives {gives}, as for inpainting, depth or "
                         f"upscaling; {SUITS}.")  # fmt: skip


def refuse_scheduler(scheduler: Any) -> None:
    """Raises WrongInput where noise is not that of a diffusion."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if "beta_schedule" not in scheduler.config or kind not in ("epsilon", "v_prediction", "sample"):
        raise WrongInput(
            f"{type(scheduler).__name__} (prediction_type {kind!r}) is the scheduler of a flow or the like, not of a "
            f"diffusion with betas; {SUITS}."
        )


def _folder(weights: str) -> Path:
    """The folder behind `weights`, complete."""
    folder = Path(weights).expanduser()
    command = f"hf download {weights} --local-dir FOLDER"
    if not folder.is_dir():
        if weights.count("/") != 1 or weights.startswith((".", "~", "/")):
            raise MissingWeights(
                f"weights={weights!r} is no folder on this machine; give the folder of a Stable Diffusion checkpoint in "
                "the layout of diffusers, or its organisation/name in the hub's cache."
            )
        from huggingface_hub import try_to_load_from_cache

        index = try_to_load_from_cache(weights, "unet/config.json")
        if not isinstance(index, str):
            raise MissingWeights(
                f"the checkpoint {weights} is not in the hub's cache of this machine (no unet/config.json); run "
                f"`{command}` where there is a connection, copy the folder here and give it as weights=FOLDER."
            )
        folder = Path(index).parents[1]
    if (folder / "transformer").is_dir() and not (folder / "unet").is_dir():
        raise WrongInput(f"{folder} has a transformer for a U-Net, as Stable Diffusion 3 and Flux do; {SUITS}.")
    missing = [name for name in OTHERS if not (folder / name).is_file()]
    missing += [
        f"{part}/{stem}.safetensors"
        for part, stem in WEIGHTS.items()
        if not _has(folder, part, ".safetensors") and not _has(folder, part, ".fp16.safetensors")
    ]
    if not (folder / "tokenizer/tokenizer.json").is_file() and not (folder / "tokenizer/vocab.json").is_file():
        missing.append("tokenizer/vocab.json")
    if missing:
        raise MissingWeights(
            f"{folder} is not a complete Stable Diffusion checkpoint: it lacks {', '.join(missing)}; {AGAIN}."
        )
    return folder


def _scheduler_class(folder: Path) -> Any:
    """The scheduler that the checkpoint names."""
    import diffusers

    name = json.loads((folder / "scheduler/scheduler_config.json").read_text(encoding="utf-8")).get("_class_name", "")
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if found is None:
        raise WrongInput(f"{folder}/scheduler names the scheduler {name!r}, which this diffusers does not have.")
    return found


def _has(folder: Path, part: str, suffix: str) -> bool:
    return (folder / part / f"{WEIGHTS[part]}{suffix}").is_file()


def licence_of(folder: Path) -> str:
    """What the head of the checkpoint's README.md says of its licence; "unknown" where there is none."""
    readme = folder / "README.md"
    if readme.is_file():
        head = readme.read_text(encoding="utf-8", errors="replace").split("---")
        for line in head[1].splitlines() if len(head) > 2 else ():
            key, colon, value = line.partition(":")
            if colon and key.strip() == "license":
                return value.strip()
    return "unknown"


class ClipJudge:
    """A CLIP of `backbones.clip` as what judges: pictures and sentences in one space; bicubic to its own size."""

    def __init__(self, name: str, device: str, antialias: bool = True):
        from ..backbones import clip

        self.antialias = antialias
        self.clip = clip.load(name, activation=clip.activation_of(name), device="cuda" if device == "cuda" else "cpu")

    def pictures(self, pixels: Tensor) -> Tensor:
        import torch.nn.functional as F

        size = self.clip.shape.size
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=self.antialias)
        return self.clip.pool(self.clip.vision(self.clip.embed(self.clip.normalise(pixels)))[0])

    def sentences(self, sentences: list[str]) -> Tensor:
        from ..backbones.clip import tokenise

        return self.clip.text(tokenise(sentences))
