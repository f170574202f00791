"""The embedded backbone: its card tells the truth, its engines agree, its training script learns and exports."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import anomalens as al
from anomalens import backbones
from anomalens.backbones import tiny
from anomalens.backbones._onnx import OnnxNetwork
from anomalens.datasets.procedural import Procedural
from anomalens.errors import MissingExtra, MissingWeights, UnknownName, WrongInput

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "scripts" / "train_tiny.py"
TEACHER = REPOSITORY.parent / "shared" / "weights" / "resnet18_stem_to_layer3.safetensors"


def get(**choices):
    return backbones.get("tiny", **{"device": "cpu", "engine": "onnx", "threads": 1, **choices})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((8, 3, 64, 96), dtype=np.float32)


def int8(**choices):
    return backbones.get("tiny:int8", **{"device": "cpu", "threads": 1, **choices})


@pytest.fixture(scope="module")
def drawn():
    """(8, 3, 128, 128): four good surfaces and four with a defect."""
    chosen = [s for c in ("cloth", "metal") for s in Procedural(c, size=128, good_count=2, bad_count=2).test()]
    return np.stack([np.float32(s.image()) / 255 for s in chosen]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "card", "asset"),
    [("tiny", tiny.CARD, tiny.ASSET), ("tiny:int8", tiny.INT8_CARD, tiny.INT8_ASSET)],
)
def test_card_is_that_of_the_shipped_file(name, card, asset):
    data = asset.read_bytes()
    assert asset.name == Path(card.file).name
    assert card.sha256 == hashlib.sha256(data).hexdigest() == backbones.get(name, device="cpu").fingerprint
    assert card.bytes == len(data)
    assert card.title == name
    assert "Apache-2.0" in card.licence
    assert "BSD-3-Clause" in card.licence
    assert backbones.card("tiny") == tiny.CARD


def test_assets_stay_small():
    assert sum(f.stat().st_size for f in tiny.ASSET.parent.iterdir() if f.name.startswith("tiny")) <= 6_000_000


def test_weights_are_those_of_the_layout():
    arrays = tiny.read_initializers(tiny.ASSET.read_bytes())
    shapes = {name: array.shape for name, array in arrays.items()}
    expected = {"mean": (3, 1, 1), "std": (3, 1, 1)}
    for name, (inputs, outputs, kernel, _) in tiny.LAYERS.items():
        expected |= {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}
    assert shapes == expected
    assert sum(a.size for a in arrays.values()) < 1_500_000
    np.testing.assert_array_equal(arrays["mean"].ravel(), np.float32(tiny.CARD.mean))
    np.testing.assert_array_equal(arrays["std"].ravel(), np.float32(tiny.CARD.std))


def test_weights_are_read_as_the_onnx_package_reads_them():
    onnx = pytest.importorskip("onnx", reason="compares with the onnx package")
    stored = onnx.load(tiny.ASSET).graph.initializer
    ours = tiny.read_initializers(tiny.ASSET.read_bytes())
    assert set(ours) == {t.name for t in stored}
    for tensor in stored:
        np.testing.assert_array_equal(ours[tensor.name], onnx.numpy_helper.to_array(tensor))


@pytest.mark.parametrize("strides", [(4,), (8,), (16,), (4, 8), (8, 16), (4, 16), (4, 8, 16), (16, 8)])
@pytest.mark.parametrize("engine", ["onnx", "torch", "int8"])
def test_strides_in_any_choice_come_finest_first(engine, strides, images):
    if engine == "torch":
        pytest.importorskip("torch", reason="the torch engine")
    make = int8 if engine == "int8" else partial(get, engine=engine)
    backbone = make(strides=strides)
    maps = backbone(images[:2])
    assert backbone.strides == tuple(sorted(strides))
    assert [m.shape for m in maps] == [
        (2, c, 64 // s, 96 // s) for s, c in zip(backbone.strides, backbone.channels, strict=True)
    ]
    everything = dict(zip((4, 8, 16), make(strides=(4, 8, 16))(images[:2]), strict=True))
    for stride, m in zip(backbone.strides, maps, strict=True):
        np.testing.assert_allclose(np.asarray(m), np.asarray(everything[stride]), atol=1e-4)


@pytest.mark.parametrize("asset", [tiny.ASSET, tiny.INT8_ASSET])
def test_what_no_output_needs_is_left_out(asset):
    onnx = pytest.importorskip("onnx", reason="compares with the onnx package")
    for outputs in (("stride4",), ("stride4", "stride16"), ("stride4", "stride8", "stride16")):
        found = onnx.load_from_string(tiny.select_outputs(asset.read_bytes(), outputs))
        whole = onnx.load(asset)
        expected = onnx.utils.Extractor(whole).extract_model(["images"], list(outputs))
        assert [o.name for o in found.graph.output] == list(outputs)
        assert [n.output[0] for n in found.graph.node] == [n.output[0] for n in expected.graph.node]
        assert {t.name for t in found.graph.initializer} == {t.name for t in expected.graph.initializer}
        assert found.opset_import == whole.opset_import
        onnx.checker.check_model(found)
    assert found.graph.node == whole.graph.node


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (256, 256)])
def test_torch_equals_onnx(size):
    torch = pytest.importorskip("torch", reason="the torch engine")
    x = np.random.default_rng(1).random((2, 3, *size), dtype=np.float32)
    ours, theirs = get(strides=(4, 8, 16), engine="torch"), get(strides=(4, 8, 16))
    assert (ours.engine, ours.device, ours.fingerprint) == ("torch", "cpu", theirs.fingerprint)
    for a, b in zip(ours(torch.from_numpy(x)), theirs(x), strict=True):
        assert isinstance(a, torch.Tensor)
        assert not a.requires_grad
        np.testing.assert_allclose(a.numpy(), b, atol=1e-4)


@pytest.mark.gpu
def test_gpu_equals_onnx(images):
    torch = pytest.importorskip("torch", reason="the torch engine")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    backbone = get(strides=(4, 8, 16), device="auto", engine="auto")
    assert (backbone.engine, backbone.device) == ("torch", "cuda")
    for a, b in zip(backbone(images), get(strides=(4, 8, 16))(images), strict=True):
        assert a.device.type == "cuda"
        np.testing.assert_allclose(a.cpu().numpy(), b, atol=1e-4)


def test_onnx_takes_tensors_too(images):
    torch = pytest.importorskip("torch", reason="gives a tensor to the ONNX engine")
    for a, b in zip(get()(torch.from_numpy(images)), get()(images), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [get, int8])
def test_a_batch_equals_its_pictures_bit_for_bit(make, images):
    backbone = make(strides=(4, 8, 16))
    together = backbone(images)
    for again, first in zip(backbone(images), together, strict=True):
        np.testing.assert_array_equal(again, first)
    alone = [backbone(images[i : i + 1]) for i in range(len(images))]
    for level, whole in enumerate(together):
        np.testing.assert_array_equal(np.concatenate([maps[level] for maps in alone]), whole)


def test_normalisation_and_direction_matter():
    """Pictures in [0, 255] or in BGR must not give the same features: the graph really sees colours in [0, 1]."""
    x = np.zeros((1, 3, 64, 64), np.float32)
    x[:, 0, 16:48, 16:48] = 1
    fine = get()(x)[0]
    assert np.abs(fine - get()(x[:, ::-1])[0]).max() > 0.1
    assert np.abs(fine - get()(x * 255)[0]).max() > 1


def test_int8_stays_close_to_float32(drawn):
    network = int8(strides=(4, 8, 16))
    assert (network.name, network.engine, network.device) == ("tiny:int8", "onnx-int8", "cpu")
    for a, b in zip(get(strides=(4, 8, 16))(drawn), network(drawn), strict=True):
        cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        assert cosine.mean() > 0.98
        centre = a.mean((0, 2, 3), keepdims=True)  # the mean vector is long and would hide a poor network
        assert np.square(a - b).sum() < 0.05 * np.square(a - centre).sum()


def test_int8_weights_cannot_saturate_a_cpu_without_vnni():
    """There a pair of products uint8 * int8 is added in 16 bits: 2 * 255 * 64 is the most that fits."""
    onnx = pytest.importorskip("onnx", reason="reads int8 arrays")
    arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(tiny.INT8_ASSET).graph.initializer]
    weights = [a for a in arrays if a.dtype == np.int8 and a.ndim == 4]
    assert len(weights) == sum(not name.startswith("stride") for name in tiny.LAYERS)
    assert all(np.abs(w.astype(int)).max() <= 64 for w in weights)


def test_patchcore_runs_on_int8_and_knows_it_when_loaded(tmp_path):
    cloth = Procedural("cloth", size=64, train_count=4, good_count=2, bad_count=2)
    detector = al.create("patchcore", backbone="tiny:int8", image_size=64, threads=1).fit(cloth.train())
    al.save(detector, tmp_path / "model")
    again = al.load(tmp_path / "model")
    for a, b in zip(detector.predict(cloth.test()), again.predict(cloth.test()), strict=True):
        assert a.score == b.score
    again = al.load(tmp_path / "model")
    again.backbone = "tiny"
    with pytest.raises(WrongInput, match="other weights"):
        list(again.predict(cloth.test()))


def test_a_spot_changes_features_where_it_is(images):
    spotted = images[:1].copy()
    spotted[:, :, 24:40, 40:56] = 1 - spotted[:, :, 24:40, 40:56]
    before, after = get(strides=(8,))(images[:1])[0], get(strides=(8,))(spotted)[0]
    change = np.square(after - before).sum(1)[0]  # (8, 12)
    y, x = np.unravel_index(change.argmax(), change.shape)
    assert 3 <= y < 5
    assert 5 <= x < 7


@pytest.mark.parametrize(
    ("name", "choices", "words"),
    [
        ("tiny:large", {}, "tiny:large"),
        ("tiny", {"strides": (8, 32)}, r"\(4, 8, 16\)"),
        ("tiny", {"strides": ()}, "strides"),
        ("tiny", {"strides": (8, 8)}, "each once"),
        ("tiny", {"engine": "onnx-int8"}, "'tiny:int8'"),
        ("tiny:int8", {"engine": "onnx-int8"}, "engine 'auto'"),
        ("tiny:int8", {"engine": "torch"}, "ONNX Runtime on the CPU"),
        ("tiny:int8", {"device": "cuda"}, "ONNX Runtime on the CPU"),
        ("tiny:int8", {"strides": (2,)}, "tiny:int8 got strides"),
        ("tiny", {"engine": "tensorrt"}, "tensorrt"),
        ("tiny", {"device": "tpu"}, "tpu"),
    ],
)
def test_unknown_choices_are_refused(name, choices, words):
    with pytest.raises(WrongInput, match=words):
        backbones.get(name, **choices)


def test_misspelt_name_gets_a_hint():
    with pytest.raises(UnknownName, match="'tiny'"):
        backbones.get("tinny")


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 72), (1, 3, 50, 64), (0, 3, 64, 64)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(WrongInput, match=r"multiples of 16|\(B, 3, H, W\)"):
        get()(np.zeros(shape, np.float32))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_gpu_asked_for_and_absent(engine):
    torch = pytest.importorskip("torch", reason="asks torch for a GPU")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(WrongInput, match="CUDA"):
        get(device="cuda", engine=engine)


def test_missing_file_and_missing_torch_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny, "find_spec", lambda name: None)
    assert get(device="auto", engine="auto").engine == "onnx"
    with pytest.raises(MissingExtra, match=r"anomalens\[torch\]"):
        get(engine="torch")
    monkeypatch.setattr(tiny, "ASSET", tmp_path / "tiny.onnx")
    with pytest.raises(MissingWeights, match=r"tiny\.onnx"):
        get()
    monkeypatch.setattr(tiny, "INT8_ASSET", tmp_path / "tiny-int8.onnx")
    with pytest.raises(MissingWeights, match=r"tiny-int8\.onnx"):
        int8()


def test_auto_on_the_cpu_loads_no_torch():
    code = (
        "import sys; from anomalens import backbones as b; b.get('tiny', device='cpu'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# The training script.


def train(folder: Path, *options: str, seed: int = 2) -> None:
    spec = importlib.util.spec_from_file_location("train_tiny", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    small = {"steps": 24, "every": 8, "batch": 16, "size": 32, "canvases": 8, "held-out": 8, "workers": 0, "seed": seed}
    command = [f"--teacher={TEACHER}", f"--work={folder}", *(f"--{k}={v}" for k, v in small.items()), *options]
    script.train(script.parse(command))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch = pytest.importorskip("torch", reason="training needs torch")
    pytest.importorskip("timm", reason="the teacher is built by timm")
    pytest.importorskip("onnx", reason="the export needs onnx")
    if not TEACHER.exists():
        pytest.skip(f"the teacher's weights {TEACHER.name} are not beside the repository")
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("tiny")
    train(folder)
    yield folder
    torch.set_num_threads(threads)


def test_training_lowers_the_loss_and_exports(trained):
    with (trained / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    losses = [float(row["loss"]) for row in rows]
    assert losses[2] < losses[1] < losses[0]
    assert (trained / "curves.png").stat().st_size > 500
    ours, shipped = (tiny.read_initializers(f.read_bytes()) for f in (trained / "tiny.onnx", tiny.ASSET))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in shipped.items()}


def test_training_also_writes_an_int8_version(trained, drawn):
    names = ("stride8", "stride16")
    ours, exact = (OnnxNetwork(trained / file, names, threads=1)(drawn) for file in ("tiny-int8.onnx", "tiny.onnx"))
    for a, b in zip(exact, ours, strict=True):
        assert not np.array_equal(a, b)
        assert np.square(a - b).sum() < 0.1 * np.square(a - a.mean((0, 2, 3), keepdims=True)).sum()


def test_an_interrupted_training_ends_the_same(trained, tmp_path):
    train(tmp_path, "--pause=13")
    assert not (tmp_path / "tiny.onnx").exists()
    with pytest.raises(SystemExit, match="--work"):
        train(tmp_path, seed=3)
    train(tmp_path)
    ours, theirs = (tiny.read_initializers((folder / "tiny.onnx").read_bytes()) for folder in (tmp_path, trained))
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-5, err_msg=name)
