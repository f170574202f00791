"""timm backbones: names, weights, engines. Random weights where the numbers do not matter, real ones where they do."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from anomalens import backbones  # noqa: E402
from anomalens.backbones import _onnx  # noqa: E402
from anomalens.backbones import timm as ours  # noqa: E402
from anomalens.backbones._onnx import OnnxBackbone  # noqa: E402
from anomalens.errors import MissingExtra, MissingWeights, NotFitted, UnknownName, WrongInput  # noqa: E402

STRIDES = (4, 8, 16)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
REAL = {  # file: name in front of @, then how to make it with timm alone
    "resnet18_stem_to_layer3": ("resnet18", {}, (1, 2, 3), IMAGENET),
    "mobilenetv2_100_tf2_ptq": (
        "mobilenetv2_100?pad_type=same&mean=0.5&std=0.5",
        {"pad_type": "same"},
        (1, 2, 3),
        HALF,
    ),
    "mobilenetv1_100_tf1_qat": (
        "mobilenetv1_100?pad_type=same&mean=0.5&std=0.5",
        {"pad_type": "same"},
        (1, 2, 3),
        HALF,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALENS_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def images():
    """Smooth pictures, as cameras make them: (4, 3, 96, 64)."""
    coarse = torch.rand(4, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (96, 64), mode="bicubic").clamp(0, 1).numpy()


@pytest.fixture(scope="module")
def random18(cache):
    return backbones.get("timm:resnet18?weights=random", strides=STRIDES, engine="onnx", device="cpu")


@pytest.fixture(scope="module")
def real18(resnet18, cache):
    return backbones.get(resnet18, strides=STRIDES, engine="onnx", device="cpu")


def error_between(found, expected) -> float:
    """Largest difference over all outputs, in parts of the largest value."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True)]
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def plain_timm(network, images, mean, std, weights=None, **options):
    """The features as a reader of timm's manual would make them."""
    model = timm.create_model(network, pretrained=False, features_only=True, **options).eval()
    if weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights), strict=False)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (mean, std))
    with torch.no_grad():
        return model((torch.from_numpy(images) - mean) / std)


# --- names ------------------------------------------------------------------------------------------------------------


def test_argument_is_read():
    wanted = ours.parse("mobilenetv2_100?pad_type=same&mean=0.5&std=0.1,0.2,0.3&size=96@/a?b&c@d.safetensors")
    assert wanted.network == "mobilenetv2_100"
    assert wanted.options == {"pad_type": "same"}
    assert wanted.mean == (0.5, 0.5, 0.5)
    assert wanted.std == (0.1, 0.2, 0.3)
    assert wanted.size == 96
    assert wanted.file == Path("/a?b&c@d.safetensors")
    assert ours.parse("x?drop=yes&k=3&f=1e-3&l=1,2").options == {"drop": True, "k": 3, "f": 0.001, "l": (1, 2)}


@pytest.mark.parametrize(
    "argument",
    [
        "", "@file", "resnet18@", "resnet18?=3", "resnet18?mean", "resnet18?mean=1,2", "resnet18?mean=a",
        "resnet18?std=0", "resnet18?weights=best", "resnet18?weights=random@file", "resnet18?seed=x", "resnet18?size=0",
        "resnet18?download=2", "resnet18?a=1&a=2", "resnet18?checkpoint_path=x.pth", "resnet18?pretrained=yes",
        "resnet18?features_only=no",
    ],
)  # fmt: skip
def test_a_malformed_argument_is_refused(argument):
    with pytest.raises(WrongInput, match="timm:"):
        backbones.get(f"timm:{argument}")


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(UnknownName, match="'resnet18'"):
        backbones.get("timm:resnet81?weights=random", engine="torch")
    with pytest.raises(UnknownName, match="'tv_in1k'"):
        backbones.get("timm:resnet18.tv_in2k", engine="torch")


@pytest.mark.parametrize("network", ["resnet18?colour=red", "vit_tiny_patch16_224?img_size=-3"])
def test_an_option_that_timm_refuses(network):
    with pytest.raises(WrongInput, match="timm cannot make"):
        backbones.get(f"timm:{network}&weights=random", strides=(16,), engine="torch")


def test_a_stride_the_network_lacks():
    with pytest.raises(WrongInput, match=r"vit_tiny_patch16_224 has no feature map of stride 8.*\[16\]"):
        backbones.get("timm:vit_tiny_patch16_224?weights=random", engine="torch")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", REAL)
def test_real_weights_give_the_features_of_plain_timm(file, shared, images):
    argument, options, indices, (mean, std) = REAL[file]
    path = shared / "weights" / f"{file}.safetensors"
    found = backbones.get(f"timm:{argument}@{path}", strides=STRIDES, engine="torch", device="cpu")
    network = argument.partition("?")[0]
    expected = plain_timm(network, images, mean, std, path, out_indices=indices, **options)
    assert error_between(found(images), expected) < 1e-4


@pytest.mark.parametrize("network", ["regnety_002", "efficientnet_b0", "convnext_atto"])
def test_other_architectures_give_the_features_of_plain_timm(network, images, tmp_path):
    """From a file with other names of no use to us: the whole classifier."""
    from safetensors.torch import save_file

    torch.manual_seed(5)
    whole = timm.create_model(network, pretrained=False)
    for module in whole.modules():  # statistics that batch norm must use
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    found = backbones.get(f"timm:{network}@{tmp_path / 'whole.safetensors'}", engine="torch", device="cpu")(images)
    levels = [f["reduction"] for f in whole.feature_info]
    indices = tuple(max(i for i, r in enumerate(levels) if r == s) for s in (8, 16))
    mean, std = (torch.tensor(whole.pretrained_cfg[k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        inputs = (torch.from_numpy(images) - mean) / std
        expected = whole.eval().forward_intermediates(inputs, indices=indices, intermediates_only=True)
    assert error_between(found, expected) < 1e-4


def test_only_layers_in_use_are_asked_for(shared):
    """The file ends after stride 16: strides up to 16 load, stride 32 names what is missing."""
    path = shared / "weights" / "resnet18_stem_to_layer3.safetensors"
    with pytest.raises(WrongInput, match=r"layer4\.0\.conv1\.weight is missing"):
        backbones.get(f"timm:resnet18@{path}", strides=(8, 32), engine="torch")
    with pytest.raises(WrongInput, match=r"layer1\.0\.conv1\.weight is \[64, 64, 3, 3\] instead of \[128, 64, 1, 1\]"):
        backbones.get(f"timm:wide_resnet50_2@{path}", engine="torch")


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WrongInput, match=r"not a readable safetensors file.*convert a \.pth"):
        backbones.get(f"timm:resnet18@{tmp_path / 'weights.pth'}", engine="torch")
    for engine in ("torch", "onnx"):
        with pytest.raises(MissingWeights, match="does not exist"):
            backbones.get(f"timm:resnet18@{tmp_path / 'nothing.safetensors'}", engine=engine)


def test_missing_pretrained_weights_are_not_downloaded(monkeypatch):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a: calls.append(a) or (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(MissingWeights) as caught:
        backbones.get("timm:resnet18.tv_in1k", engine="torch")
    text = str(caught.value)
    assert not calls
    for part in ("timm/resnet18.tv_in1k", "model.safetensors", "47 MB", "?download=yes", "@FILE",
                 str(_onnx.cache_folder() / "weights" / "timm--resnet18.tv_in1k.safetensors")):  # fmt: skip
        assert part in text
    with pytest.raises(MissingWeights, match="no net"):
        backbones.get("timm:resnet18.tv_in1k?download=yes", engine="torch")
    assert calls == [("timm/resnet18.tv_in1k", "model.safetensors")]


def test_pretrained_weights_come_from_the_cache_or_by_hand(monkeypatch, shared, cache, images):
    import huggingface_hub

    path = shared / "weights" / "resnet18_stem_to_layer3.safetensors"
    expected = backbones.get(f"timm:resnet18@{path}", engine="torch", device="cpu")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    assert backbones.get("timm:resnet18", engine="torch", device="cpu").fingerprint == expected.fingerprint
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    by_hand = cache / "weights" / "timm--resnet18.a1_in1k.safetensors"
    by_hand.parent.mkdir()
    by_hand.symlink_to(path)
    found = backbones.get("timm:resnet18", engine="torch", device="cpu")
    assert error_between(found(images), expected(images)) == 0


def test_random_weights_follow_the_seed_and_leave_the_users_alone(images):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b, c = (
        backbones.get(f"timm:resnet18?weights=random&seed={s}", strides=(4,), engine="torch", device="cpu")
        for s in (1, 1, 2)
    )
    assert (torch.get_rng_state() == state).all()
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert error_between(a(images), b(images)) == 0
    assert error_between(a(images), c(images)) > 0.1


def test_the_fingerprint_covers_options_and_normalisation():
    prints = {
        backbones.get(f"timm:mobilenetv2_100?weights=random{more}", strides=(4,), engine="torch").fingerprint
        for more in ("", "&pad_type=same", "&mean=0.5", "&std=0.5")
    }
    assert len(prints) == 4


def test_batch_norm_is_folded_only_where_that_is_exact(images):
    from torch.nn import BatchNorm2d

    made = backbones.get("timm:resnet18?weights=random", strides=(4,), engine="torch", device="cpu")
    assert not any(isinstance(m, BatchNorm2d) for m in made._network.modules())

    class Reused(torch.nn.Module):  # the output of the convolution is needed twice, so it cannot be scaled
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), BatchNorm2d(4)
            torch.nn.init.uniform_(self.norm.weight, 2, 3)

        def forward(self, x):
            y = self.conv(x)
            return (y + self.norm(y),)

    network = Reused().eval()
    assert ours._folded(network, (16, 16)) is network


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 64), (65, 98)])
def test_onnx_agrees_with_torch_at_any_size(size, random18):
    x = np.random.default_rng(1).random((2, 3, *size), dtype=np.float32)
    eager = backbones.get("timm:resnet18?weights=random", strides=STRIDES, engine="torch", device="cpu")
    assert error_between(random18(x), eager(x)) < 1e-4


def test_converting_is_announced_in_one_line(caplog, capfd):
    backbones.get("timm:resnet18?weights=random&seed=1", strides=(4,), engine="onnx", device="cpu")
    (line,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert line.startswith("converting timm:resnet18?weights=random&seed=1 to ONNX, once; the result is kept in ")
    assert capfd.readouterr() == ("", "")


def test_onnx_agrees_with_torch_on_real_weights(real18, resnet18, images):
    eager = backbones.get(resnet18, strides=STRIDES, engine="torch", device="cpu")
    assert error_between(real18(images), eager(images)) < 1e-4
    assert real18.fingerprint == eager.fingerprint


def test_tensorflow_padding_takes_multiples_of_the_stride_only():
    name = "timm:mobilenetv2_100?pad_type=same&weights=random"
    onnx, eager = (backbones.get(name, strides=(4,), engine=e, device="cpu") for e in ("onnx", "torch"))
    x = np.random.default_rng(1).random((2, 3, 68, 40), dtype=np.float32)
    assert error_between(onnx(x), eager(x)) < 1e-4
    with pytest.raises(WrongInput, match=r"65 x 40.*multiples of 4"):
        onnx(x[:, :, :65])


def test_the_second_process_needs_no_torch(random18, images, cache, tmp_path):
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys\n"
        "for heavy in ('torch', 'timm', 'onnx', 'onnxscript', 'huggingface_hub'): sys.modules[heavy] = None\n"
        "import numpy as np; from anomalens import backbones\n"
        f"b = backbones.get('timm:resnet18?weights=random', strides={STRIDES}, device='cpu')\n"
        f"np.savez({str(tmp_path / 'out.npz')!r}, *b(np.load({str(tmp_path / 'images.npy')!r})))\n"
        "print(b.engine, b.fingerprint, b.channels)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip() == f"onnx {random18.fingerprint} {random18.channels}"
    stored = np.load(tmp_path / "out.npz")
    assert error_between([stored[f"arr_{i}"] for i in range(3)], random18(images)) == 0


def test_a_machine_without_torch_takes_any_version(random18, monkeypatch, images):
    monkeypatch.setattr(ours, "_version", lambda package: None)
    monkeypatch.setattr(ours, "_libraries", lambda: pytest.fail("torch was asked for"))
    found = backbones.get("timm:resnet18?weights=random", strides=STRIDES, device="cpu")
    assert error_between(found(images), random18(images)) == 0


def test_the_cache_knows_files_by_content(shared, tmp_path, monkeypatch, real18):
    """A copy of the weights elsewhere is not converted again; other weights under the same name are."""
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((shared / "weights" / "resnet18_stem_to_layer3.safetensors").read_bytes())
    calls = []
    monkeypatch.setattr(
        ours, "convert", lambda *a: calls.append(a) or (_ for _ in ()).throw(_onnx.CannotConvert("stop"))
    )
    found = backbones.get(f"timm:resnet18@{copy}", strides=STRIDES, engine="onnx", device="cpu")
    assert found.fingerprint == real18.fingerprint
    assert found.name == f"timm:resnet18@{copy}"
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(_onnx.CannotConvert, match="stop"):
        backbones.get(f"timm:resnet18@{copy}", strides=STRIDES, engine="onnx", device="cpu")
    assert len(calls) == 1


def test_a_damaged_cache_is_written_again(random18, cache, monkeypatch, images):
    (path,) = (p for p in (cache / "onnx").glob("resnet18-*.onnx") if p.read_bytes() == random18.model_bytes)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    about = random18.about
    monkeypatch.setattr(ours, "convert", lambda *a: (good, about["multiple"]))
    again = backbones.get("timm:resnet18?weights=random", strides=STRIDES, engine="onnx", device="cpu")
    assert error_between(again(images), random18(images)) == 0
    assert path.read_bytes()[:100] == good[:100]
    OnnxBackbone(path)


def test_a_cache_that_cannot_be_written_is_no_obstacle(random18, tmp_path, monkeypatch, caplog, images):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "file"))
    model, about = random18.model_bytes, random18.about
    monkeypatch.setattr(ours, "convert", lambda *a: (model, about["multiple"]))
    found = backbones.get("timm:resnet18?weights=random", strides=STRIDES, engine="onnx", device="cpu")
    assert error_between(found(images), random18(images)) == 0
    assert "is converted again by every process" in caplog.text


def test_auto_falls_back_to_torch_and_says_why(monkeypatch, caplog):
    def refuse(*_):
        raise _onnx.CannotConvert("an operator has no ONNX form.")

    monkeypatch.setattr(ours, "convert", refuse)
    name = "timm:resnet18?weights=random&seed=99"
    found = backbones.get(name, strides=(4,), device="cpu")
    assert found.engine == "torch"
    assert "runs on torch, which is slower on a CPU: an operator has no ONNX form." in caplog.text
    with pytest.raises(_onnx.CannotConvert):
        backbones.get(name, strides=(4,), device="cpu", engine="onnx")


def test_exporters_are_silent_and_leave_no_trace(monkeypatch, capsys):
    """A library that logs through the root logger gives it a handler for good, and the user's lines look otherwise."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with _onnx._quiet():
        logging.warning("advice")
        logging.getLogger("torch.onnx").warning("advice")
        warnings.warn("advice", stacklevel=1)
        print("progress")
    assert not logging.getLogger().handlers
    logging.getLogger("mine").warning("still here")
    assert capsys.readouterr() == ("", "still here\n")


def test_the_file_holds_no_paths_of_this_machine(random18):
    assert b"site-packages" not in random18.model_bytes
    assert str(Path(ours.__file__).parents[3]).encode() not in random18.model_bytes


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (ImportError("No module named 'torchvision'"), r"pip install 'anomalens\[torch\]'"),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            r"torch .* and torchvision .* do not belong together.*pip",
        ),
    ],
)
def test_a_missing_or_broken_installation_names_the_command(monkeypatch, broken, match):
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise broken

    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(MissingExtra, match=match):
        backbones.get("timm:resnet18?weights=random&seed=98")


def test_a_missing_onnx_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"onnxscript.*pip install 'anomalens\[torch\]'"):
        backbones.get("timm:resnet18?weights=random&seed=97", strides=(4,), engine="onnx", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said():
    for engine in ("auto", "torch", "onnx", "onnx-int8"):
        with pytest.raises(WrongInput, match="cuda"):
            backbones.get("timm:resnet18?weights=random", device="cuda", engine=engine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_with_the_cpu(images):
    name = "timm:resnet18?weights=random"
    gpu, cpu = (backbones.get(name, engine="torch", device=d) for d in ("cuda", "cpu"))
    outputs = gpu(images)
    assert all(y.is_cuda and y.dtype == torch.float32 for y in outputs)
    assert error_between([y.cpu() for y in outputs], cpu(images)) < 5e-3  # TF32


# --- int8 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(real18, resnet18, images):
    return backbones.get(resnet18, strides=STRIDES, engine="onnx-int8", device="cpu").quantize([images[:2], images[2:]])


def test_int8_is_close_to_float(int8, real18, images):
    assert int8.engine == "onnx-int8"
    assert int8.fingerprint == real18.fingerprint
    for a, b, stated in zip(real18(images), int8(images), int8.cosine, strict=True):
        a, b = (np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) for x in (a, b))
        cosine = np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)])
        assert cosine > 0.99
        assert cosine == pytest.approx(stated, abs=1e-4)


def test_int8_is_small_and_survives_as_bytes(int8, real18, images):
    assert len(int8.model_bytes) < 0.35 * len(real18.model_bytes)
    again = OnnxBackbone.from_bytes(int8.model_bytes)
    assert (again.name, again.engine, again.strides, again.channels) == (int8.name, "onnx-int8", STRIDES, int8.channels)
    assert again.cosine == int8.cosine
    assert error_between(again(images), int8(images)) == 0


def test_int8_needs_pictures_first(random18, images):
    waiting = backbones.get("timm:resnet18?weights=random", strides=STRIDES, engine="onnx-int8", device="cpu")
    with pytest.raises(NotFitted, match="quantize"):
        waiting(images)
    with pytest.raises(NotFitted, match="quantize"):
        _ = waiting.model_bytes
    with pytest.raises(WrongInput, match="no pictures"):
        waiting.quantize(iter(()))
    with pytest.raises(WrongInput, match="float32"):
        waiting.quantize([np.zeros((1, 3, 64, 64), np.uint8)])


def test_int8_only_once(int8, images):
    with pytest.raises(WrongInput, match="int8 already"):
        int8.quantize([images])


def test_weights_have_seven_bits_where_sums_would_saturate(random18, images, monkeypatch):
    import onnx

    def largest(model: bytes) -> int:
        tensors = onnx.load_from_string(model).graph.initializer
        return max(
            int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()) for t in tensors if t.data_type == 3 and t.dims
        )

    for saturates, limit in ((True, 64), (False, 127)):
        monkeypatch.setattr(_onnx, "_saturates", lambda answer=saturates: answer)
        made = random18.quantize([images])
        assert largest(made.model_bytes) == limit
    caught = []
    monkeypatch.setattr(_onnx, "_saturates", lambda: True)
    monkeypatch.setattr(_onnx.LOG, "warning", lambda *a: caught.append(a[0] % a[1:]))
    OnnxBackbone.from_bytes(made.model_bytes)
    assert "may saturate" in caught[0]


@pytest.mark.parametrize("damage", [b"", b"not a network", None])
def test_bytes_that_are_no_backbone(damage, random18):
    if damage is None:
        import onnx

        proto = onnx.load_from_string(random18.model_bytes)
        onnx.helper.set_model_props(proto, {"anomalens": json.dumps({"name": "x"})})
        damage = proto.SerializeToString()
    with pytest.raises(WrongInput):
        OnnxBackbone.from_bytes(damage)
