"""ONNX networks: running them with a sized thread pool, writing them from torch, making them int8.

A file written here says of itself what it is (strides, channels, fingerprint, sizes it takes) in its metadata, so a
second process needs ONNX Runtime alone.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AnomalensError, MissingExtra, NotFitted, WrongInput
from ..parts.threads import cores

LOG = logging.getLogger("anomalens")
KEY = "anomalens"  # the entry of the ONNX metadata that holds our JSON


class CannotConvert(AnomalensError):
    """torch could not write this network as ONNX, or wrote something that computes other numbers."""


def cache_folder() -> Path:
    """Where converted networks are kept: $ANOMALENS_CACHE, else ~/.cache/anomalens."""
    return Path(os.environ.get("ANOMALENS_CACHE") or Path.home() / ".cache" / "anomalens")


def check_images(images: Any, name: str = "a backbone") -> None:
    """Refuse everything but floating point (B, 3, H, W); values are not looked at."""
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[1] != 3 or not all(shape):
        raise WrongInput(f"{name} got images of shape {shape}; an array (B, 3, H, W) is needed.")
    if "float" not in str(images.dtype):
        raise WrongInput(f"{name} got images of type {images.dtype}; float32 in [0, 1] is needed: divide by 255 first.")


class OnnxNetwork:
    """An ONNX file with one input (B, 3, H, W) float32 and named outputs.

    Raises:
        WrongInput: device "cuda" with an ONNX Runtime that has no CUDA; images that `check_images` refuses.
    """

    def __init__(
        self, model: Path | bytes, outputs: tuple[str, ...], *, device: str = "cpu", threads: int | None = None
    ):
        self.session = open_session(model, device, threads)
        self.outputs = list(outputs)
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: Any) -> list[np.ndarray]:
        check_images(images)
        return self.session.run(self.outputs, {self.input: to_array(images)})


def to_array(images: Any) -> np.ndarray:
    """Contiguous float32 on the host, from numpy or torch."""
    if hasattr(images, "detach"):
        images = images.detach().cpu().float().numpy()
    return np.ascontiguousarray(images, np.float32)


def check_device(device: str) -> None:
    """Refuse a GPU that this ONNX Runtime cannot use; it would go on silently on the CPU."""
    import onnxruntime as ort

    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise WrongInput(
            "an ONNX engine was asked for device 'cuda', but this ONNX Runtime has no CUDA: "
            "use engine='torch', or pip install onnxruntime-gpu."
        )


def open_session(model: Path | bytes, device: str = "cpu", threads: int | None = None, severity: int = 3) -> Any:
    """An InferenceSession that neither spins while it waits nor uses more threads than there are free cores.

    severity: lowest level that ONNX Runtime prints by itself: 3 errors, 4 only what ends the process.
    """
    import onnxruntime as ort

    check_device(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = severity
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves the decoders
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=providers)


class OnnxBackbone:
    """A backbone in one ONNX file that carries its own description; see `Backbone` for the attributes.

    cosine: for int8, one number per output: the cosine to float32 of the feature vectors, mean over the positions of
        up to eight of the calibration pictures; None for float32.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        name: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        int8: bool = False,
    ):
        """int8: the file is float32 and will be made int8 by `quantize`; until then there is nothing to call."""
        self._model, self._threads = model, threads
        self._network = OnnxNetwork(model, (), device=device, threads=threads)
        try:
            self.about: dict[str, Any] = json.loads(self._network.session.get_modelmeta().custom_metadata_map[KEY])
            self.name: str = name or self.about["name"]
            self.strides: tuple[int, ...] = tuple(self.about["strides"])
            self.channels: tuple[int, ...] = tuple(self.about["channels"])
            self.fingerprint: str = self.about["fingerprint"]
            self.cosine: tuple[float, ...] | None = tuple(self.about["cosine"]) if "cosine" in self.about else None
            self._multiple: int = self.about["multiple"]
            self._size: tuple[int, ...] = tuple(self.about["size"])
        except (KeyError, TypeError, ValueError):
            raise WrongInput("this ONNX file was not written by anomalens: its description is missing.") from None
        self.engine = "onnx-int8" if int8 or self.cosine is not None else "onnx"
        self.device = device
        self._network.outputs = outputs_of(self.strides)
        if self.about.get("weight_bits") == 8 and _saturates():
            LOG.warning(
                "%s was made int8 for a CPU with VNNI; on this one sums may saturate: fit again here.",
                self.name,
            )

    @classmethod
    def from_bytes(cls, model: bytes, *, name: str | None = None, threads: int | None = None) -> OnnxBackbone:
        """The backbone whose `model_bytes` these are.

        Raises:
            WrongInput: the bytes are something else.
        """
        try:
            return cls(bytes(model), name=name, threads=threads)
        except AnomalensError:
            raise
        except Exception as error:  # ONNX Runtime has a dozen unrelated exceptions for damaged files
            raise WrongInput(f"these {len(model)} bytes are not a network ({first_line(error)}).") from None

    @property
    def model_bytes(self) -> bytes:
        """The whole network as one ONNX file, to be stored with a detector and given to `from_bytes`."""
        self._require_ready()
        return self._read()

    def __call__(self, images: Any) -> list[np.ndarray]:
        self._require_ready()
        self._check(images)
        return self._network(images)

    def quantize(self, images: Iterable[Any]) -> OnnxBackbone:
        """An int8 version on the CPU, with the ranges of activations seen on typical pictures; self stays as it is.

        Static, symmetric int8 weights per channel and uint8 activations between their smallest and largest value.
        Weights get 7 bits on x86 CPUs without VNNI, where sums of 8-bit products would saturate.

        Args:
            images: batches (B, 3, H, W) in [0, 1], as for a call; 20 pictures are enough. Read once.

        Raises:
            WrongInput: no pictures, or this is int8 already. MissingExtra: the package onnx is not installed.
        """
        if self.cosine is not None:
            raise WrongInput(f"{self.name} is int8 already; quantize the one from get(..., engine='onnx-int8').")
        kept: list[np.ndarray] = []

        def arrays() -> Iterator[np.ndarray]:
            for batch in images:
                self._check(batch)
                array = to_array(batch)
                if (room := 8 - sum(map(len, kept))) > 0:
                    kept.append(array[:room])
                yield array

        batches = arrays()
        first = next(batches, None)
        if first is None:
            raise WrongInput(f"{self.name} got no pictures to quantize with; give at least one batch (B, 3, H, W).")
        bits = 7 if _saturates() else 8
        model = _quantize(self._read(), chain([first], batches), bits)
        int8 = OnnxNetwork(model, tuple(outputs_of(self.strides)), threads=self._threads)
        pairs = [list(zip(self._network(x), int8(x), strict=True)) for x in kept]  # by batch, by output
        cosine = [
            float(np.mean(np.concatenate([_cosine(*pair[i]) for pair in pairs]))) for i in range(len(self.strides))
        ]
        about = {**self.about, "name": self.name, "cosine": cosine, "weight_bits": bits}
        return OnnxBackbone(describe(model, about), threads=self._threads)

    def _read(self) -> bytes:
        return self._model if isinstance(self._model, bytes) else self._model.read_bytes()

    def _require_ready(self) -> None:
        if self.engine == "onnx-int8" and self.cosine is None:
            raise NotFitted(f"{self.name} becomes int8 by quantize(pictures): call it with typical pictures first.")

    def _check(self, images: Any) -> None:
        check_images(images, self.name)
        height, width = images.shape[2:]
        if not self._multiple:
            if (height, width) != self._size:
                raise WrongInput(
                    f"{self.name} got pictures of {height} x {width}; converted to ONNX it takes "
                    f"{self._size[0]} x {self._size[1]} only: resize, or use engine='torch'."
                )
        elif height % self._multiple or width % self._multiple:
            raise WrongInput(
                f"{self.name} got pictures of {height} x {width}; converted to ONNX it takes multiples of "
                f"{self._multiple} only: resize, or use engine='torch'."
            )


def outputs_of(strides: tuple[int, ...]) -> list[str]:
    """Names of the outputs in the ONNX file."""
    return [f"stride{s}" for s in strides]


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the channel vectors (B, C, h, w) at every position, flat."""
    product = (a * b).sum(axis=1)
    lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return (product / np.maximum(lengths, 1e-12)).ravel()


def describe(model: bytes, about: dict[str, Any]) -> bytes:
    """The same ONNX file with our JSON in its metadata."""
    onnx = _package("onnx")
    proto = onnx.load_from_string(model)
    onnx.helper.set_model_props(proto, {KEY: json.dumps(about)})
    return proto.SerializeToString()


def convert(network: Any, size: tuple[int, int], strides: tuple[int, ...]) -> tuple[bytes, int]:
    """Write a torch module, (B, 3, H, W) -> one tensor per stride, as an ONNX file with the weights inside.

    Tracing with symbolic height and width turns TensorFlow's "same" padding into a graph that takes minutes to write
    and is slow to run. So the network is traced at one size, the two dimensions are then declared free, and the file is
    compared with torch at other sizes to learn which ones it really takes.

    Args:
        network: in eval mode, on the CPU.
        size: height and width to trace at.

    Returns:
        The file, and the number of which height and width must be multiples: 1 any size, 0 only `size`.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        CannotConvert: torch cannot write this network, or the file computes something else.
    """
    import torch

    _package("onnx"), _package("onnxscript")
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=outputs_of(strides),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            )
            proto = program.model_proto
    except Exception as error:  # the exporter raises whatever the tracer, the passes or the checker raise
        raise CannotConvert(f"torch {torch.__version__} cannot write it as ONNX ({first_line(error)}).") from error
    for node in [*proto.graph.node, *(n for f in proto.functions for n in f.node)]:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces with the paths of this machine
    del proto.graph.value_info[:]  # shapes of inner tensors at the traced size
    for value in [*proto.graph.input, *proto.graph.output]:
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{'height' if axis == 2 else 'width'}"
    model = proto.SerializeToString()
    return model, _sizes_taken(network, model, size, strides)


def _sizes_taken(network: Any, model: bytes, size: tuple[int, int], strides: tuple[int, ...]) -> int:
    """Compare the file with torch: at the traced size, then at odd sizes, then at multiples."""
    import torch

    session = open_session(model, severity=4)

    def error_at(batch: int, height: int, width: int) -> float:
        x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = [y.numpy() for y in network(x)]
        found = session.run(outputs_of(strides), {"images": x.numpy()})
        if [y.shape for y in found] != [y.shape for y in expected]:
            return np.inf
        return max(
            float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in zip(found, expected, strict=True)
        )

    if not (error := error_at(1, *size)) < 1e-4:
        raise CannotConvert(f"its ONNX file differs from torch by {error:.1e} of the largest value.")
    for multiple in (1, max(strides), 32):
        try:
            # one odd and one even number of steps
            if error_at(2, multiple * (64 // multiple + 1), multiple * (96 // multiple + 2)) < 1e-4:
                return multiple
        except Exception as reason:  # this size is impossible, for torch or for ONNX Runtime, each in its own words
            LOG.debug("multiples of %d are not possible: %s", multiple, reason)
    return 0


def _quantize(model: bytes, batches: Iterator[np.ndarray], bits: int) -> bytes:
    onnx = _package("onnx")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory(prefix="anomalens-") as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(model),
            target,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=bits == 7,
            activation_type=QuantType.QUInt8,  # signed activations run three times slower on x86
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


def _saturates() -> bool:
    """Whether ONNX Runtime adds pairs of 8-bit products in 16 bits here: on x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i686"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # unknown: 7 bits are safe everywhere


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra(f"converting a network needs {name} ({error}): pip install 'anomalens[torch]'.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress reports and advice of exporters off the user's screen; exceptions pass.

    Standard error is not redirected: loggers that are made meanwhile would write to the replacement for ever.
    """
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    nothing = logging.NullHandler()
    loggers[0].addHandler(nothing)  # else the first logging.warning(...) of a library gives the root a handler for good
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            loggers[0].removeHandler(nothing)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """Of a message that may be a page long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
