"""The embedded network: small, offline, ours. `scripts/train_tiny.py` makes its weights, docs/tiny.md judges them.

    tiny          float32, by ONNX Runtime or torch
    tiny:int8     the same network in int8, twice as fast on a CPU, by ONNX Runtime alone

A plain residual network. Batch norm exists only in training and is folded into the convolutions here. The layout is
written once, in `forward`, over four operations; torch, the training script and the ONNX writer each bring their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import MissingExtra, MissingWeights, WrongInput
from ..types import BackboneCard
from ._onnx import OnnxNetwork, check_images

CARD = BackboneCard(
    title="tiny",
    summary="Embedded residual network of 0.97 M parameters, outputs at strides 4, 8 and 16; works offline.",
    licence="Apache-2.0 (ours); distilled from torchvision ResNet18 ImageNet weights, BSD-3-Clause",
    source="scripts/train_tiny.py: trained on pictures that the script draws itself, no photographs",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    limits="Knows textures, edges and shapes, not the names of things; saw no photograph. Under PatchCore as good as its "
    "teacher on average of 19 categories (image AUROC 0.938 and 0.936), worse at faint specks and colours in busy texture "
    "(cookie contamination 0.82 and 0.95, tiles colour 0.57 and 0.67) and at fine gaps (board open 0.79 and 0.87); brain "
    "MRI 0.84 and 0.78, too poor for medical use. tiny:int8 has 0.937. Measured by scripts/evaluate_tiny.py.",
    file="assets/tiny.onnx",
    sha256="912a6a621459783bd97ccb5511328e10801dbed5435ec3b67862a9b44ce2c916",
    bytes=3_880_294,
)

INT8_CARD = replace(
    CARD,
    title="tiny:int8",
    summary="tiny with 7-bit weights and 8-bit activations, ranges taken from drawn pictures; for the CPU only.",
    file="assets/tiny-int8.onnx",
    sha256="f760af071094c3d91d68fcde304b8811108a096afd2d4e69b4e25feabd78be30",
    bytes=1_087_307,
)

ASSET = Path(__file__).parent / CARD.file
INT8_ASSET = Path(__file__).parent / INT8_CARD.file
CHANNELS = {4: 32, 8: 64, 16: 128}  # by output stride

LAYERS = {  # name: (input channels, output channels, kernel, stride); padding is kernel // 2
    "stem1": (3, 32, 3, 2),
    "stem2": (32, 48, 3, 2),
    "stage4_1_conv1": (48, 48, 3, 1),
    "stage4_1_conv2": (48, 48, 3, 1),
    "stage8_1_conv1": (48, 80, 3, 2),
    "stage8_1_conv2": (80, 80, 3, 1),
    "stage8_1_skip": (48, 80, 1, 2),
    "stage8_2_conv1": (80, 80, 3, 1),
    "stage8_2_conv2": (80, 80, 3, 1),
    "stage16_1_conv1": (80, 144, 3, 2),
    "stage16_1_conv2": (144, 144, 3, 1),
    "stage16_1_skip": (80, 144, 1, 2),
    "stage16_2_conv1": (144, 144, 3, 1),
    "stage16_2_conv2": (144, 144, 3, 1),
    "stride4": (48, CHANNELS[4], 1, 1),  # the outputs: linear, no batch norm
    "stride8": (80, CHANNELS[8], 1, 1),
    "stride16": (144, CHANNELS[16], 1, 1),
}


class Operations(Protocol):
    """What `forward` needs of whoever runs, trains or writes down the network."""

    def normalise(self, images: Any) -> Any: ...

    def conv(self, name: str, x: Any) -> Any: ...

    def relu(self, x: Any) -> Any: ...

    def add(self, x: Any, y: Any) -> Any: ...


def forward(ops: Operations, images: Any, strides: tuple[int, ...] = tuple(CHANNELS)) -> dict[int, Any]:
    """Images (B, 3, H, W) in [0, 1] -> for each stride s a map (B, CHANNELS[s], H / s, W / s)."""

    def block(name: str, x: Any) -> Any:
        inner = ops.conv(f"{name}_conv2", ops.relu(ops.conv(f"{name}_conv1", x)))
        skip = ops.conv(f"{name}_skip", x) if f"{name}_skip" in LAYERS else x
        return ops.relu(ops.add(inner, skip))

    x = ops.relu(ops.conv("stem1", ops.normalise(images)))
    x = ops.relu(ops.conv("stem2", x))
    maps = {}
    for stride, blocks in ((4, 1), (8, 2), (16, 2)):
        for index in range(1, blocks + 1):
            x = block(f"stage{stride}_{index}", x)
        if stride in strides:
            maps[stride] = ops.conv(f"stride{stride}", x)
        if stride == max(strides):
            break
    return maps


def build(argument: str, *, strides: tuple[int, ...], device: str, engine: str, threads: int | None) -> Tiny:
    """The embedded network, by ONNX Runtime on the CPU and by torch on a GPU; both agree to 1e-4.

    argument: "", or "int8" for the int8 version, which runs on the CPU by ONNX Runtime alone.
    device: "auto" is "cuda" where torch is installed and sees a GPU, unless an ONNX engine is asked for.
    threads: for the torch engine this is the process-wide `torch.set_num_threads`; None leaves that alone.

    Raises:
        WrongInput: an argument, stride, engine or device this backbone does not have.
        MissingExtra: the torch engine without torch. MissingWeights: the embedded file is not in the installation.
    """
    name = f"tiny:{argument}" if argument else "tiny"
    if name not in ("tiny", "tiny:int8"):
        raise WrongInput(f"backbone {name!r} is not known: write 'tiny', or 'tiny:int8' for the int8 version.")
    int8 = name == "tiny:int8"
    strides = tuple(strides)
    if not strides or len(set(strides)) < len(strides) or not set(strides) <= set(CHANNELS):
        raise WrongInput(f"{name} got strides {strides}; choose one or more of {tuple(CHANNELS)}, each once.")
    if engine == "onnx-int8":
        raise WrongInput(f"{name} got engine 'onnx-int8'; its int8 version is the backbone 'tiny:int8', engine 'auto'.")
    if engine not in ("auto", "torch", "onnx"):
        raise WrongInput(f"{name} got engine {engine!r}; choose 'auto', 'torch' or 'onnx'.")
    if device not in ("auto", "cpu", "cuda"):
        raise WrongInput(f"{name} got device {device!r}; choose 'auto', 'cpu' or 'cuda'.")
    if int8 and (engine == "torch" or device == "cuda"):
        raise WrongInput(
            f"{name} got engine {engine!r} with device {device!r}; it runs by ONNX Runtime on the CPU: "
            "leave both at 'auto', or use 'tiny'."
        )
    asset = INT8_ASSET if int8 else ASSET
    if not asset.is_file():
        raise MissingWeights(f"the weights of {name} are missing: install anomalens again, it brings {asset.name}.")
    if device == "auto":
        device = "cuda" if engine != "onnx" and not int8 and _gpu() else "cpu"
    if engine == "auto":
        engine = "torch" if device == "cuda" else "onnx"
    return Tiny(name, asset, tuple(sorted(strides)), device, "onnx-int8" if int8 else engine, threads)


class Tiny:
    """A ready network; see `Backbone` for the attributes. Height and width must be multiples of 16."""

    def __init__(self, name: str, asset: Path, strides: tuple[int, ...], device: str, engine: str, threads: int | None):
        self.name = name
        self.strides = strides
        self.channels = tuple(CHANNELS[s] for s in strides)
        self.engine = engine
        self.device = device
        self.fingerprint = _sha256(asset)
        self._run: Any
        if engine == "torch":
            self._run = _TorchNetwork(asset, strides, device, threads)
        else:
            self._run = _onnx_network(asset, strides, device, threads)

    def __call__(self, images: Any) -> list[Any]:
        check_images(images, self.name)
        height, width = images.shape[2:]
        if height % 16 or width % 16:
            raise WrongInput(f"{self.name} got pictures of {height} x {width}; multiples of 16 are needed.")
        return self._run(images)


@cache
def _sha256(asset: Path) -> str:
    return hashlib.sha256(asset.read_bytes()).hexdigest()


def _gpu() -> bool:
    """Whether torch sees a GPU; torch, slow to import, is asked only where a driver is present."""
    driver = any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", r"C:\Windows\System32\nvcuda.dll"))
    if not driver or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _onnx_network(asset: Path, strides: tuple[int, ...], device: str, threads: int | None) -> OnnxNetwork:
    if device == "cuda":
        import onnxruntime as ort

        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise WrongInput(
                "tiny got engine='onnx' with device='cuda', but this ONNX Runtime has no CUDA; "
                "use engine='torch', or install onnxruntime-gpu."
            )
    outputs = tuple(f"stride{s}" for s in strides)
    return OnnxNetwork(select_outputs(asset.read_bytes(), outputs), outputs, device=device, threads=threads)


class _TorchNetwork:
    """The same network in torch, with the weights read from the ONNX file; it learns nothing, so no gradients."""

    def __init__(self, asset: Path, strides: tuple[int, ...], device: str, threads: int | None):
        if find_spec("torch") is None:
            raise MissingExtra("tiny with engine='torch' needs PyTorch: pip install 'anomalens[torch]'.")
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise WrongInput("tiny got device='cuda', but torch sees no CUDA device; use device='cpu'.")
        if threads is not None:
            torch.set_num_threads(threads)
        self.torch = torch
        self.strides = strides
        self.device = device
        arrays = read_initializers(asset.read_bytes())
        self.weights = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def __call__(self, images: Any) -> list[Any]:
        torch = self.torch
        if isinstance(images, np.ndarray) and not images.flags.writeable:
            images = images.copy()  # torch cannot hold memory that it may not write
        x = torch.as_tensor(images, dtype=torch.float32, device=self.device)
        # TF32, torch's default for convolutions on a GPU, would leave the 1e-4 to the ONNX engine.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            maps = forward(self, x, self.strides)
        return [maps[s] for s in self.strides]

    def normalise(self, images: Any) -> Any:
        return (images - self.weights["mean"]) / self.weights["std"]

    def conv(self, name: str, x: Any) -> Any:
        _, _, kernel, stride = LAYERS[name]
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return self.torch.nn.functional.conv2d(x, weight, bias, stride, kernel // 2)

    def relu(self, x: Any) -> Any:
        return self.torch.relu(x)

    def add(self, x: Any, y: Any) -> Any:
        return x + y


# Weights for torch, and graphs with fewer outputs, without the onnx package. An ONNX file is a protobuf message: fields
# of (number, wire type, payload). https://protobuf.dev/programming-guides/encoding/ and onnx.proto name the numbers.


def read_initializers(model: bytes) -> dict[str, np.ndarray]:
    """Named float32 arrays stored in an ONNX model (ModelProto.graph = 7, GraphProto.initializer = 5)."""
    arrays = {}
    for graph in (value for number, value in _fields(model) if number == 7):
        for tensor in (value for number, value in _fields(graph) if number == 5):
            name, shape, data = "", [], b""
            for number, value in _fields(tensor):
                if number == 1:  # dims: one integer each, or all packed together
                    shape += [value] if isinstance(value, int) else list(_packed(value))
                elif number == 8:
                    name = value.decode()
                elif number == 9:  # raw_data, little endian
                    data = value
            arrays[name] = np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    return arrays


def select_outputs(model: bytes, outputs: tuple[str, ...]) -> bytes:
    """The ONNX model without what `outputs` do not need: ONNX Runtime computes every output that a file declares."""
    return b"".join(
        _field(number, _select(value, outputs) if number == 7 else value) for number, value in _fields(model)
    )


def _select(graph: bytes, outputs: tuple[str, ...]) -> bytes:
    """GraphProto: node = 1 (its input = 1, output = 2), initializer = 5 (name = 8), output = 12 (name = 1)."""
    fields = list(_fields(graph))
    needed, nodes = set(outputs), []
    for node in (value for number, value in reversed(fields) if number == 1):  # those who read a value come after it
        if needed.intersection(_strings(node, 2)):
            needed.update(_strings(node, 1))
            nodes.append(node)
    kept = [(1, node) for node in reversed(nodes)]
    for number, value in fields:
        names = {5: needed, 12: set(outputs)}.get(number)
        if number != 1 and (names is None or names.intersection(_strings(value, 8 if number == 5 else 1))):
            kept.append((number, value))
    return b"".join(_field(*field) for field in kept)


def _strings(message: bytes, wanted: int) -> list[str]:
    return [value.decode() for number, value in _fields(message) if number == wanted]


def _field(number: int, value: int | bytes) -> bytes:
    """One integer, or bytes with their length before them."""
    if isinstance(value, int):
        return _to_varint(number << 3) + _to_varint(value)
    return _to_varint(number << 3 | 2) + _to_varint(len(value)) + value


def _to_varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}[wire]
        yield number, message[position : position + size]
        position += size


def _packed(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
