"""Networks of timm (PyTorch Image Models), their feature maps chosen by stride.

    timm:NETWORK[?OPTION=VALUE&...][@FILE.safetensors]

    timm:resnet18                                     weights from the Hugging Face cache, never downloaded by surprise
    timm:wide_resnet50_2.tv_in1k?download=yes         the same, and may be downloaded once
    timm:resnet18@resnet18.safetensors                weights from a file
    timm:mobilenetv2_100?pad_type=same&mean=0.5&std=0.5@mobilenet.safetensors     weights that came from TensorFlow
    timm:resnet18?weights=random&seed=3               no weights: for tests and comparisons
    timm:vit_small_patch14_dinov2?dynamic_img_size=yes&size=252@vits14.safetensors      with strides=(14,)

Options of ours: `mean` and `std` (one number or three, for pixels in [0, 1]; default timm's for this network),
`weights=random` with `seed` (default 0), `download=yes`, and `size` (pixels; the one picture size that the ONNX file
of a vision transformer takes). All others go to timm.create_model. Values: yes, no, numbers, lists with commas, words.

A file must hold every tensor of the layers up to the coarsest stride, under timm's names (torchvision's are the same
for ResNets); what it holds besides is ignored. Of several layers with one stride the deepest is taken; for a vision
transformer that is its last block before the final norm.

Engines: "torch" runs float32 on "cpu" or "cuda". "onnx" converts once into the cache folder ($ANOMALENS_CACHE, else
~/.cache/anomalens); later processes need neither torch nor timm. "onnx-int8" needs `backbone.quantize(pictures)`.
Where other programs use the same cores, set OMP_WAIT_POLICY=PASSIVE before torch is imported: its threads spin else.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.metadata
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..errors import CannotWrite, MissingExtra, MissingWeights, UnknownName, WrongInput, unknown
from ..files import write_atomic
from ..parts.threads import cores
from ..types import BackboneCard
from . import Device, Engine
from ._onnx import (
    LOG,
    CannotConvert,
    OnnxBackbone,
    cache_folder,
    check_device,
    check_images,
    convert,
    describe,
    first_line,
)
from ._weights import from_hub, gpu_is_there, sha256_of, stamp, value_of

CARD = BackboneCard(
    title="timm",
    summary="Any of the networks of PyTorch Image Models that has feature maps: ResNet, MobileNet, EfficientNet, "
    "ConvNeXt, vision transformers and more. timm:NETWORK[?OPTION=VALUE&...][@FILE.safetensors]",
    licence="timm: Apache-2.0; weights: as stated by each network's model card, some forbid commercial use",
    source="Hugging Face hub, organisation timm, or a safetensors file of yours",
    mean=None,
    std=None,
    limits="Needs torch and timm, except to run a network that was converted to ONNX on this machine before. Features "
    "of ImageNet classifiers know objects and textures of photographs, little of greyscale, X-ray or depth pictures.",
)

FORMAT = 1  # of the converted files; a change of what they compute or describe makes it one higher
# create_model would read pickles, fetch files or change the contract through these
REFUSED = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only",
    "feature_cls", "out_indices", "in_chans", "num_classes", "scriptable", "exportable", "device", "dtype",
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What stands behind `timm:`, read. options go to timm.create_model."""

    argument: str
    network: str
    file: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    random: bool = False
    seed: int = 0
    download: bool = False
    size: int | None = None

    @property
    def name(self) -> str:
        return f"timm:{self.argument}"


def build(
    argument: str, *, strides: tuple[int, ...], device: str, engine: str, threads: int | None
) -> TorchBackbone | OnnxBackbone:
    """A ready network; see `Backbone` for the attributes and the top of this file for the argument.

    device: "auto" is "cuda" where torch sees a GPU, unless an ONNX engine is asked for.
    engine: "auto" is "torch" on a GPU, and "onnx" on the CPU where onnx and onnxscript can convert the network.
    threads: for the torch engine this sets the process-wide number; None lowers it to the cores there are.

    Raises:
        UnknownName: timm has no such network. WrongInput: an option, stride, engine or file that does not fit.
        MissingWeights: no weights on this machine. MissingExtra: torch, timm or the ONNX packages are needed.
    """
    wanted = parse(argument)
    strides = tuple(sorted(strides))
    if not strides or len(set(strides)) < len(strides):
        raise WrongInput(f"{wanted.name} got strides {strides}; give one or more, each once, such as (8, 16).")
    if engine not in get_args(Engine):
        raise unknown("engine", str(engine), get_args(Engine))
    if device not in get_args(Device):
        raise unknown("device", str(device), get_args(Device))
    if engine == "onnx-int8" and device == "cuda":
        raise WrongInput(f"{wanted.name} got engine 'onnx-int8' with device 'cuda'; int8 runs on the CPU only.")
    if device == "auto":
        device = "cuda" if engine in ("auto", "torch") and gpu_is_there() else "cpu"
    if engine == "torch" or (engine == "auto" and device == "cuda"):
        return TorchBackbone(wanted, strides, device, threads)
    try:
        return _onnx_backbone(wanted, strides, device, threads, int8=engine == "onnx-int8")
    except (CannotConvert, MissingExtra) as reason:
        if engine != "auto":
            raise
        fallback = TorchBackbone(wanted, strides, device, threads)
        LOG.warning("%s runs on torch, which is slower on a CPU: %s", wanted.name, reason)
        return fallback


def parse(argument: str) -> Wanted:
    """Read NETWORK[?OPTION=VALUE&...][@FILE]; a file name may hold any character."""
    head, at, file = argument.partition("@")
    network, _, query = head.partition("?")
    if not network or (at and not file):
        raise WrongInput(f"'timm:{argument}' is incomplete; write timm:NETWORK[?OPTION=VALUE&...][@FILE.safetensors].")
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key or key in REFUSED or key in options:
            raise WrongInput(
                f"timm:{argument} has the option {part!r}; it must be OPTION=VALUE, once, and not reserved."
            )
        options[key] = value_of(value)
    weights = options.pop("weights", "pretrained")
    if weights not in ("random", "pretrained") or (weights == "random" and at):
        raise WrongInput(f"timm:{argument} must have weights=random, or @FILE, or neither for pretrained ones.")
    seed, size, download = options.pop("seed", 0), options.pop("size", None), options.pop("download", False)
    if (
        type(seed) is not int
        or seed < 0
        or type(size) not in (int, type(None))
        or size == 0
        or type(download) is not bool
    ):
        raise WrongInput(f"timm:{argument} needs whole numbers for seed and size, and yes or no for download.")
    return Wanted(
        argument=argument,
        network=network,
        file=Path(file).expanduser() if at else None,
        mean=_per_channel(argument, "mean", options.pop("mean", None)),
        std=_per_channel(argument, "std", options.pop("std", None)),
        options=options,
        random=weights == "random",
        seed=seed,
        download=download,
        size=size,
    )


def _per_channel(argument: str, key: str, value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = value if isinstance(value, tuple) else (value,) * 3
    good = len(values) == 3 and all(
        type(v) in (int, float) and np.isfinite(v) and (v > 0 or key == "mean") for v in values
    )
    if not good:
        raise WrongInput(f"timm:{argument} has {key}={value}; one or three numbers are needed, those of std above 0.")
    return tuple(map(float, values))


# --- the network in torch ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """A torch module (B, 3, H, W) in [0, 1] -> a list of maps, and what is known of it."""

    network: Any
    channels: tuple[int, ...]
    fingerprint: str
    size: tuple[int, int]  # of the pictures it was made for
    weights: Path | None


class TorchBackbone:
    """A network run by torch, without gradients; see `Backbone` for the attributes.

    float32 with channels last, batch norm folded into the convolutions where that changes nothing. On a GPU the
    process-wide torch settings decide whether convolutions round their factors to TF32, as they do by default.
    """

    engine = "torch"

    def __init__(self, wanted: Wanted, strides: tuple[int, ...], device: str, threads: int | None):
        torch, _ = _libraries()
        if device == "cuda" and not torch.cuda.is_available():
            raise WrongInput(f"{wanted.name} got device 'cuda', but torch sees no GPU; use device='cpu'.")
        torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
        built = _build(wanted, strides)
        self.name = wanted.name
        self.strides, self.channels = strides, built.channels
        self.fingerprint = built.fingerprint
        self.device = device
        self._network = built.network.to(device, memory_format=torch.channels_last)

    def __call__(self, images: Any) -> list[Any]:
        import torch

        check_images(images, self.name)
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.require(images, requirements=("C", "W")))  # torch warns of read-only arrays
        with torch.no_grad():  # not inference_mode: a detector may train on these features
            x = images.to(self.device, torch.float32, memory_format=torch.channels_last)
            try:
                return list(self._network(x))
            except AssertionError as error:  # how timm's transformers refuse a size
                raise WrongInput(f"{self.name} cannot take pictures of {tuple(x.shape[2:])}: {error}") from error


def _build(wanted: Wanted, strides: tuple[int, ...]) -> Built:
    """The layers up to the coarsest stride, with their weights, in eval mode on the CPU."""
    torch, timm = _libraries()
    _check_network(timm, wanted)

    def create(**more: Any) -> Any:
        try:
            return timm.create_model(wanted.network, pretrained=False, **wanted.options, **more)
        except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, AttributeError) as error:
            raise WrongInput(f"timm cannot make {wanted.network} with {wanted.options}: {error}") from error

    with torch.device("meta"):  # shapes without memory or random numbers
        outline = create()
    if not hasattr(outline, "forward_intermediates") or not getattr(outline, "feature_info", None):
        raise WrongInput(f"timm has no feature maps for {wanted.network}; choose another network.")
    levels = {info["reduction"]: index for index, info in enumerate(outline.feature_info)}  # the deepest of a stride
    if missing := [s for s in strides if s not in levels]:
        raise WrongInput(
            f"{wanted.network} has no feature map of stride {missing[0]}; choose strides out of {sorted(levels)}."
        )
    cfg = outline.pretrained_cfg
    mean, std = wanted.mean or cfg["mean"], wanted.std or cfg["std"]
    weights = None if wanted.random else _weights(wanted, timm, sum(p.numel() * 4 for p in outline.parameters()))

    with torch.random.fork_rng(devices=[]):  # timm fills every tensor with random numbers first: not out of the user's
        torch.manual_seed(wanted.seed)
        body = create(features_only=True, feature_cls="getter", out_indices=tuple(levels[s] for s in strides))
    if weights:
        _load(body, weights, wanted)
    network = _normalised(body, mean, std).eval().requires_grad_(False)
    fingerprint = _fingerprint(network, wanted)
    size = (wanted.size, wanted.size) if wanted.size else tuple(cfg["input_size"][1:])
    return Built(_folded(network, size), tuple(body.feature_info.channels()), fingerprint, size, weights)


def _check_network(timm: Any, wanted: Wanted) -> None:
    name, _, tag = wanted.network.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.lower(), timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() lists all."
        raise UnknownName(f"timm has no network named {name!r}; {hint}")
    if tag and not wanted.random and wanted.file is None:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(name + ".*")]
        if tag not in tags:
            raise unknown(f"set of timm weights for {name}", tag, tags)


def _normalised(body: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    """Normalisation in front of the network, in one module."""
    import torch

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))

        def forward(self, images: Any) -> Any:
            return tuple(self.body((images - self.mean) / self.std))

    return Normalised()


def _fingerprint(network: Any, wanted: Wanted) -> str:
    """sha256 of what decides the features: architecture, options, mean, std and the tensors of the layers in use."""
    digest = hashlib.sha256(json.dumps([wanted.network.partition(".")[0], wanted.options], sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _folded(network: Any, size: tuple[int, int]) -> Any:
    """The same network with batch norms multiplied into the convolutions before them, or itself if outputs differ.

    Which convolution feeds which norm is seen in one forward pass, so no knowledge of architectures is needed.
    """
    import torch

    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    made: dict[int, tuple[str, Any]] = {}  # id of a tensor -> the convolution that made it, and the tensor to keep it
    pairs: list[tuple[str, str]] = []

    def after(conv: str) -> Any:
        return lambda module, inputs, output: made.update({id(output): (conv, output)})

    def before(norm: str) -> Any:
        return lambda module, inputs: pairs.append((made[id(inputs[0])][0], norm)) if id(inputs[0]) in made else None

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(after(name)))
        elif isinstance(module, torch.nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before(name)))
    with torch.no_grad():
        expected = network(images)
        for hook in hooks:
            hook.remove()
        folded = copy.deepcopy(network)
        for conv_name, norm_name in pairs:
            conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
            conv.weight, conv.bias = torch.nn.utils.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # timm's norms bring these
            parent, _, leaf = norm_name.rpartition(".")
            setattr(folded.get_submodule(parent), leaf, torch.nn.Sequential(*rest))
        found = folded(images)
    same = all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in zip(found, expected, strict=True))
    return folded.requires_grad_(False) if same else network


def _libraries() -> tuple[Any, Any]:
    """torch and timm."""
    try:
        import timm
        import torch
    except ImportError as error:
        raise MissingExtra(f"timm backbones need torch and timm ({error}): pip install 'anomalens[torch]'.") from None
    except RuntimeError as error:  # torchvision: "operator torchvision::nms does not exist"
        versions = " and ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision"))
        raise MissingExtra(
            f"{versions} do not belong together ({error}); install a matching pair from one source: "
            "pip install --force-reinstall torch torchvision."
        ) from error
    return torch, timm


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- weights ----------------------------------------------------------------------------------------------------------


def _weights(wanted: Wanted, timm: Any, size: int) -> Path:
    """The file to load: the one named, timm's in the Hugging Face cache, or one put into our cache folder by hand.

    size: bytes of the whole network, for the message.
    """
    if wanted.file is not None:
        if not wanted.file.is_file():
            raise MissingWeights(f"{wanted.name} names the file {wanted.file}, which does not exist; check the path.")
        return wanted.file
    cfg = timm.get_pretrained_cfg(wanted.network)
    if cfg is None or not cfg.hf_hub_id:
        raise MissingWeights(
            f"timm knows no pretrained weights for {wanted.network}; give a file of your own, "
            f"timm:{wanted.network}@FILE.safetensors, or choose another network."
        )
    filename = cfg.hf_hub_filename or "model.safetensors"
    return from_hub(wanted.name, cfg.hf_hub_id, filename, size, download=wanted.download)


def _load(body: Any, path: Path, wanted: Wanted) -> None:
    """Fill the network from a safetensors file. Layers behind the coarsest stride do not exist here: not asked for."""
    from safetensors import SafetensorError, safe_open

    bad, tensors = [], {}
    try:
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
            for name, tensor in body.state_dict().items():
                key, shape = name.removeprefix("model."), list(tensor.shape)
                if key not in stored:
                    if not key.endswith("num_batches_tracked"):  # counts training steps, decides nothing here
                        bad.append(f"{key} is missing")
                elif (found := file.get_slice(key).get_shape()) != shape:
                    bad.append(f"{key} is {found} instead of {shape}")
                else:
                    tensors[name] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise WrongInput(
            f"{path} is not a readable safetensors file ({error}); convert a .pth file with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), TARGET)."
        ) from None
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise WrongInput(f"{path} does not fit {wanted.network} with {wanted.options}: {'; '.join(bad[:3])}{more}.")
    body.load_state_dict(tensors, strict=False)


# --- the network in ONNX ----------------------------------------------------------------------------------------------


def _onnx_backbone(
    wanted: Wanted, strides: tuple[int, ...], device: str, threads: int | None, int8: bool
) -> OnnxBackbone:
    """From the cache folder, without torch; converted first where it is not there."""
    check_device(device)
    target, usable = _cached(wanted, strides)
    if usable is not None:
        try:
            found = OnnxBackbone(usable, name=wanted.name, device=device, threads=threads, int8=int8)
            if not _changed(found.about["weights"]):
                return found
        except Exception as error:  # ONNX Runtime has a dozen unrelated exceptions for damaged files
            LOG.warning("%s is damaged and will be written again (%s)", usable, first_line(error))
    built = _build(wanted, strides)
    LOG.warning("converting %s to ONNX, once; the result is kept in %s", wanted.name, target.parent)
    model, multiple = convert(built.network, built.size, strides)
    about = {
        "name": wanted.name,
        "strides": strides,
        "channels": built.channels,
        "fingerprint": built.fingerprint,
        "multiple": multiple,
        "size": built.size,
        "weights": stamp(built.weights) if built.weights and wanted.file is None else None,
    }
    model = describe(model, about)
    source: Path | bytes = target
    try:
        write_atomic(target, model)
    except CannotWrite as error:
        LOG.warning("%s is converted again by every process: %s", wanted.name, error)
        source = model
    return OnnxBackbone(source, name=wanted.name, device=device, threads=threads, int8=int8)


def _cached(wanted: Wanted, strides: tuple[int, ...]) -> tuple[Path, Path | None]:
    """Where the converted file belongs, and the file to use now, if there is one.

    The name holds the versions of torch and timm. Where these are not installed any file for the same network will do.
    """
    if wanted.file is not None and not wanted.file.is_file():
        raise MissingWeights(f"{wanted.name} names the file {wanted.file}, which does not exist; check the path.")
    weights = f"random {wanted.seed}" if wanted.random else sha256_of(wanted.file) if wanted.file else "pretrained"
    parts = [FORMAT, wanted.network, wanted.options, wanted.mean, wanted.std, wanted.size, weights, strides]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder, stem = cache_folder() / "onnx", f"{re.sub(r'[^A-Za-z0-9_.]', '_', wanted.network)}-{key}"
    versions = _version("torch"), _version("timm")
    target = folder / f"{stem}-torch{versions[0]}-timm{versions[1]}.onnx"
    if None in versions:
        others = sorted(folder.glob(f"{stem}-*.onnx"), key=lambda path: path.stat().st_mtime)
        return target, others[-1] if others else None
    return target, target if target.is_file() else None


def _changed(known: list[Any] | None) -> bool:
    """Whether the pretrained weights on this machine were replaced since; deleted ones are not needed any more."""
    return known is not None and Path(known[0]).is_file() and stamp(Path(known[0])) != known
