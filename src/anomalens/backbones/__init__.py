"""Frozen feature extractors behind one call: `get("tiny")`, `get("timm:resnet18")`, `get("timm:NAME@FILE.safetensors")`.

Each file of this folder is one family with a `CARD` (a `BackboneCard`) and
`build(argument, *, strides, device, engine, threads) -> Backbone`, where `argument` is what follows the colon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from .. import registry
from ..errors import WrongInput
from ..parts.batches import batches
from ..types import BackboneCard, Sample

Engine = Literal["auto", "torch", "onnx", "onnx-int8"]
Device = Literal["auto", "cpu", "cuda"]

CALIBRATION_PICTURES = 64  # normal pictures that an int8 network takes its value ranges from


class Backbone(Protocol):
    """images (B, 3, H, W) float32 in [0, 1], numpy or torch -> one feature map (B, C_i, H / s_i, W / s_i) per stride.

    It normalises by itself. The ONNX engines return numpy arrays, the torch engine tensors on its device.

    name: what `get` was called with. strides, channels: one per output, finest first. engine, device: what really
    runs. fingerprint: sha256 of the weights, so that a saved detector notices other ones.
    """

    name: str
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    engine: str
    device: str
    fingerprint: str

    def __call__(self, images: Any) -> list[Any]: ...


def names() -> tuple[str, ...]:
    """Families: the part before the colon."""
    return registry.stems("backbones")


def card(name: str) -> BackboneCard:
    """Licence, origin and limits of a family, without importing it."""
    return registry.literal_card("backbones", "backbone", name, "BackboneCard")


def get(
    name: str = "tiny",
    *,
    strides: tuple[int, ...] = (8, 16),
    device: Device = "auto",
    engine: Engine = "auto",
    threads: int | None = None,
) -> Backbone:
    """A ready backbone. Threads default to the cores this process may use.

    Raises:
        UnknownName: no such family or network. MissingExtra: the family needs an optional library.
        MissingWeights: the weights are not on this machine; the message says which file to put where.
    """
    family, _, argument = name.partition(":")
    module = registry.module("backbones", "backbone", family)
    return module.build(argument, strides=strides, device=device, engine=engine, threads=threads)


def network(detector: Any, learn: Iterable[Sample] | None = None) -> Backbone:
    """The backbone that a detector's settings name (backbone, strides, device, engine, threads), built once.

    learn: the normal samples, given by `fit`. It makes `detector.weights`, which `save` keeps: the fingerprint of the
        weights, and for the engine `onnx-int8` the network quantised on these samples with its cosine to float32.

    Raises:
        WrongInput: a fitted detector meets a backbone with other weights than it was fitted with.
    """
    if learn is None and "_network" in detector.__dict__:
        return detector.__dict__["_network"]
    known = None if learn is not None else getattr(detector, "weights", None)
    if known and "int8" in known:
        from ._onnx import OnnxBackbone

        built: Any = OnnxBackbone.from_bytes(known["int8"].tobytes(), name=detector.backbone, threads=detector.threads)
    else:
        built = get(
            detector.backbone, strides=tuple(detector.strides), device=detector.device, engine=detector.engine,
            threads=detector.threads,
        )  # fmt: skip
        if known and known["fingerprint"] != built.fingerprint:
            raise WrongInput(
                f"this {detector.method} was fitted with other weights of {detector.backbone} (sha256 "
                f"{known['fingerprint'][:12]}..., here {built.fingerprint[:12]}...); use the same weights, or fit again."
            )
    if learn is not None:
        detector.weights = {"fingerprint": built.fingerprint}
        if detector.engine == "onnx-int8":
            built = built.quantize(_some_pictures(detector, learn))
            detector.weights["int8"] = np.frombuffer(built.model_bytes, np.uint8)
            detector.weights["cosine"] = [float(c) for c in built.cosine]
    detector.__dict__["_network"] = built
    return built


def _some_pictures(detector: Any, samples: Iterable[Sample]) -> Iterator[Any]:
    if iter(samples) is samples:
        raise WrongInput("engine 'onnx-int8' reads the normal pictures twice; give fit a list, not an iterator.")
    size = (detector.image_size, detector.image_size)
    return (b.images for b in batches(islice(samples, CALIBRATION_PICTURES), size, detector.batch_size))
