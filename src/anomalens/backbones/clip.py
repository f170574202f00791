"""CLIP, which puts pictures and sentences into one space.

    clip:NETWORK[?OPTION=VALUE&...][@FILE]

    clip:ViT-L-14-336                       OpenAI's weights from the Hugging Face cache, never downloaded by surprise
    clip:ViT-L-14-336?download=yes          the same, and may be downloaded once
    clip:ViT-B-32?weights=laion2b_s34b_b79k           another of its trainings, by open_clip's name
    clip:ViT-L-14-336@open_clip_model.safetensors     weights from a file
    clip:@small.safetensors                 any CLIP with a vision transformer: its sizes are read off the file
    clip:tiny?weights=random&seed=3         no weights: for tests. The sizes in `Shape` are options: layers=12&patch=14

NETWORK is a name of open_clip with a vision transformer. A file holds OpenAI's tensor names, with or without `module.`
in front: .safetensors, or a .pt of plain tensors; the TorchScript archives of 2021 are programs and are not read.
Methods that use language call `load` and `tokenise`; `build` gives the patch features before the final norm.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..errors import MissingExtra, MissingWeights, WrongInput, unknown
from ..parts.threads import cores
from ..types import BackboneCard
from . import Device
from ._clip_shape import HEAD, TINY, Shape, shape_of
from ._onnx import check_images, first_line
from ._weights import from_hub, gpu_is_there, value_of

if TYPE_CHECKING:
    from torch import Tensor

    from ._clip import Clip

CARD = BackboneCard(
    title="CLIP",
    summary="Contrastive Language-Image Pretraining: a vision transformer and a text transformer that share a space. "
    "clip:NETWORK[?OPTION=VALUE&...][@FILE]",
    licence="open_clip: MIT; weights: as stated by their model cards (OpenAI's and LAION's: MIT)",
    source="Hugging Face hub (open_clip_model.safetensors), or a file of yours",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    limits="Needs torch and open_clip. Knows what photographs of the web show and how people describe them; little of "
    "X-ray, depth or microscope pictures, and it counts badly.",
)

FILENAME = "open_clip_model.safetensors"
UNUSED = ("logit_scale", "logit_bias")  # of the softmax in training; methods bring their own

Activation = Literal["gelu", "quick_gelu"]
Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Wanted:
    """What stands behind `clip:`, read. sizes: fields of `Shape` given by hand."""

    argument: str
    network: str
    file: Path | None = None
    weights: str = ""
    seed: int = 0
    download: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"clip:{self.argument}"


def parse(name: str) -> Wanted:
    """Read clip:[NETWORK][?OPTION=VALUE&...][@FILE]; a file name may hold any character."""
    family, _, argument = name.partition(":")
    if family != "clip":
        raise WrongInput(f"{name!r} has no text tower; give a backbone clip:NETWORK, such as clip:ViT-L-14-336.")
    head, at, file = argument.partition("@")
    network, _, query = head.partition("?")
    known = ("weights", "seed", "download", *(f.name for f in fields(Shape)))
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or key not in known or key in options:
            raise WrongInput(f"{name} has the option {part!r}; it must be OPTION=VALUE, once, of {', '.join(known)}.")
        options[key] = value_of(value)
    weights, seed, download = options.pop("weights", ""), options.pop("seed", 0), options.pop("download", False)
    numbers = [seed, *(v for k, v in options.items() if k != "mlp_ratio")]
    is_ratio = type(options.get("mlp_ratio", 4.0)) in (int, float)
    if not all(type(v) is int and v >= 0 for v in numbers) or type(download) is not bool or not is_ratio:
        raise WrongInput(f"{name} needs whole numbers for seed and sizes, and yes or no for download.")
    if (at and not file) or not (network or file):
        raise WrongInput(f"{name!r} is incomplete; write clip:NETWORK[?OPTION=VALUE&...] or clip:[NETWORK]@FILE.")
    if at and weights:
        raise WrongInput(f"{name} names a file and weights={weights}; leave one of them out.")
    return Wanted(argument, network, Path(file).expanduser() if at else None, str(weights), seed, download, options)


def load(
    name: str,
    *,
    activation: Activation = "gelu",
    antialias: bool = False,
    precision: Precision = "float32",
    device: str = "auto",
    threads: int | None = None,
) -> Clip:
    """Both towers, frozen, in eval mode, on a device.

    name: clip:..., see the top of this file. The other settings are explained at `_clip.Clip`. threads: process-wide,
        as torch has it; None lowers it to the cores there are. The result carries `name` and `fingerprint`.

    Raises:
        MissingExtra: torch or open_clip is not installed. MissingWeights: the weights are not on this machine.
        UnknownName: no such network or training. WrongInput: an option, file or device that does not fit.
    """
    torch = _torch()
    from ._clip import random_weights

    wanted = parse(name)
    torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
    how: dict[str, Any] = {"activation": activation, "antialias": antialias, "precision": precision}
    if wanted.weights == "random":
        clip = _empty(_shape(wanted), **how)
        random_weights(clip, wanted.seed)
    else:
        path = wanted.file or _find(wanted)
        clip = from_tensors(_read(path), heads=_shape(wanted) if wanted.network else wanted.sizes, source=path, **how)
    clip.name, clip.fingerprint = wanted.name, _fingerprint(clip)
    return clip.to(_device(device, wanted.name)).eval()


def activation_of(name: str) -> Activation:
    """What the weights of a name were trained with, as far as open_clip knows; "gelu" for files and random weights."""
    wanted = parse(name)
    if wanted.weights == "random" or wanted.file or wanted.network == "tiny":
        return "gelu"
    return "quick_gelu" if training(wanted).get("quick_gelu") else "gelu"


def from_tensors(
    tensors: Mapping[str, Tensor], *, heads: Shape | Mapping[str, Any] | None = None, source: Any = "", **how: Any
) -> Clip:
    """A CLIP of given weights under OpenAI's names; sizes are read off them, all but what `heads` says of the heads.

    Raises:
        WrongInput: tensors are missing, or do not fit together.
    """
    known = asdict(heads) if isinstance(heads, Shape) else dict(heads or {})
    shape = shape_of(tensors, **{k: v for k, v in known.items() if k in ("heads", "text_heads")})
    clip = _empty(shape, **how)
    own = clip.state_dict()
    bad = [f"{key} is missing" for key in own if key not in tensors]
    bad += [f"{key} is not known" for key in tensors if key not in own and key not in UNUSED]
    bad += [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise WrongInput(f"the weights {source} do not fit a CLIP: {'; '.join(bad[:3])}{more}.")
    clip.load_state_dict({key: tensors[key].float() for key in own})
    return clip


def _empty(shape: Shape, **how: Any) -> Clip:
    """Both towers with memory for weights, and no time spent on drawing any."""
    import torch

    from ._clip import Clip

    with torch.device("meta"):
        clip = Clip(shape, **how)
    return clip.to_empty(device="cpu")


def tokenise(sentences: Sequence[str], context: int = 77) -> Tensor:
    """(n, context) token ids, by open_clip's byte-pair encoding: start, words, end, then zeros.

    Raises:
        WrongInput: a sentence is longer than the context. MissingExtra: open_clip is not installed.
    """
    tokenizer = _tokenizer()
    ids = tokenizer(list(sentences), context_length=context)
    full = np.flatnonzero(np.asarray(ids[:, -1]))  # cut off there, or just fitting
    for index in full.tolist():
        length = len(tokenizer.encode(sentences[index])) + 2
        if length > context:
            raise WrongInput(
                f"the sentence {sentences[index][:60]!r} has {length} tokens; CLIP reads {context}: use a shorter name."
            )
    return ids


@cache
def _tokenizer() -> Any:
    return _open_clip().tokenizer.SimpleTokenizer()


# --- as a backbone ----------------------------------------------------------------------------------------------------


class ClipBackbone:
    """Patch tokens of the last block as a map; see `Backbone` for the attributes."""

    engine = "torch"

    def __init__(self, clip: Clip):
        self._clip = clip
        self.name, self.fingerprint, self.device = clip.name, clip.fingerprint, clip.device.type
        self.strides, self.channels = (clip.shape.patch,), (clip.shape.width,)

    def __call__(self, images: Any) -> list[Any]:
        import torch

        check_images(images, self.name)
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.require(images, requirements=("C", "W")))  # torch warns of read-only arrays
        h, w = (side // self.strides[0] for side in images.shape[2:])
        if not h or not w:
            raise WrongInput(f"{self.name} sees patches of {self.strides[0]} pixels; got {tuple(images.shape[2:])}.")
        with torch.no_grad(), self._clip.autocast():
            tokens, _ = self._clip.vision(self._clip.embed(self._clip.normalise(images)))
            return [tokens[:, 1:].float().transpose(1, 2).reshape(len(tokens), -1, h, w)]


def build(argument: str, *, strides: tuple[int, ...], device: str, engine: str, threads: int | None) -> ClipBackbone:
    """A ready network with one output; see the top of this file for the argument.

    Raises:
        MissingExtra, MissingWeights, UnknownName, WrongInput: as `load`; and strides other than the patch size.
    """
    if engine not in ("auto", "torch"):
        raise WrongInput(f"clip:{argument} got engine {engine!r}; CLIP runs on torch: use 'auto'.")
    name = f"clip:{argument}"
    backbone = ClipBackbone(load(name, activation=activation_of(name), device=device, threads=threads))
    if tuple(strides) != backbone.strides:
        raise WrongInput(f"clip:{argument} has one map, of stride {backbone.strides[0]}; got strides {strides}.")
    return backbone


# --- weights ----------------------------------------------------------------------------------------------------------


def _shape(wanted: Wanted) -> Shape:
    """The sizes of a network of ours or open_clip's, with those given by hand."""
    if wanted.network == "tiny":
        return Shape(**{**asdict(TINY), **wanted.sizes})
    open_clip = _open_clip()
    if wanted.network not in open_clip.list_models():
        raise unknown("network of open_clip", wanted.network, open_clip.list_models())
    config = open_clip.get_model_config(wanted.network)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "hf_model_name" in text or "timm_model_name" in vision:
        raise WrongInput(f"{wanted.name} is not a plain CLIP with a vision transformer; use a ViT such as ViT-B-16.")
    width = vision["width"]
    known = {
        "embed": config["embed_dim"], "size": vision["image_size"], "patch": vision["patch_size"], "width": width,
        "layers": vision["layers"], "heads": width // vision.get("head_width", HEAD),
        "mlp_ratio": vision.get("mlp_ratio", 4.0), "text_width": text["width"], "text_layers": text["layers"],
        "text_heads": text["heads"], "context": text["context_length"], "vocabulary": text["vocab_size"],
    }  # fmt: skip
    return Shape(**{**known, **wanted.sizes})


def training(wanted: Wanted) -> dict[str, Any]:
    """open_clip's entry of the weights asked for; OpenAI's, else the first, where none are named."""
    open_clip = _open_clip()
    _shape(wanted)  # refuses an unknown network
    tags = open_clip.list_pretrained_tags_by_model(wanted.network)
    if not tags:
        raise MissingWeights(f"open_clip knows no weights for {wanted.name}; give a file: {wanted.name}@FILE.")
    tag = wanted.weights or ("openai" if "openai" in tags else tags[0])
    if tag not in tags:
        raise unknown(f"set of weights for {wanted.network}", tag, tags)
    return open_clip.get_pretrained_cfg(wanted.network, tag)


def _find(wanted: Wanted) -> Path:
    if wanted.network == "tiny":
        raise WrongInput(f"{wanted.name} has no weights of its own; use clip:tiny?weights=random, for tests.")
    entry = training(wanted)
    owner, _, rest = entry.get("hf_hub", "").partition("/")  # owner/repository/[file]
    model, _, filename = rest.partition("/")
    if not model:
        raise MissingWeights(f"open_clip knows no hub repository for {wanted.name}; give a file: {wanted.name}@FILE.")
    held = model.rpartition(".")[2]
    if wanted.weights not in ("", held) and held in _open_clip().list_pretrained_tags_by_model(wanted.network):
        raise MissingWeights(  # a slip in open_clip's table
            f"the hub repository that open_clip names for {wanted.name} holds {held}; fetch {entry.get('url')} instead "
            f"and name it with clip:{wanted.network}@FILE."
        )
    size = 4 * _count(_shape(wanted))
    return from_hub(wanted.name, f"{owner}/{model}", filename or FILENAME, size, download=wanted.download)


def _count(shape: Shape) -> int:
    """Parameters, without building them."""
    import torch

    from ._clip import Clip

    with torch.device("meta"):
        return sum(p.numel() for p in Clip(shape).parameters())


def _read(path: Path) -> dict[str, Any]:
    """Tensors of a .safetensors or .pt file, without `module.` in front."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingWeights(f"the file of weights {path} does not exist; check the path.")
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WrongInput(f"{path} is not a readable safetensors file ({first_line(error)}).") from None
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch announces programs before it refuses them
                tensors = torch.load(path, map_location="cpu", weights_only=True)
            tensors = dict(tensors.get("state_dict", tensors))
        except Exception as error:  # torch, pickle and zipfile each have their own
            raise WrongInput(
                f"{path} is not a file of plain tensors ({type(error).__name__}); OpenAI's .pt archives are programs: "
                f"take {FILENAME} of the same network from the Hugging Face hub."
            ) from None
    return {key.removeprefix("module."): value for key, value in tensors.items() if hasattr(value, "shape")}


def _fingerprint(clip: Clip) -> str:
    """sha256 of what decides the features."""
    digest = hashlib.sha256(json.dumps(asdict(clip.shape), sort_keys=True).encode())
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _device(device: str, name: str) -> str:
    if device not in get_args(Device):
        raise unknown("device", device, get_args(Device))
    if device == "auto":
        return "cuda" if gpu_is_there() else "cpu"
    if device == "cuda" and not _torch().cuda.is_available():
        raise WrongInput(f"{name} got device 'cuda', but torch sees no GPU; use device='cpu'.")
    return device


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(f"CLIP needs torch ({error}): pip install 'anomalens[clip]'.") from None
    return torch


@cache
def _open_clip() -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not belong to this torch
        raise MissingExtra(f"CLIP needs open_clip ({error}): pip install 'anomalens[clip]'.") from None
    return open_clip
