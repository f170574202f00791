"""CLIP: names, files of weights, and both towers against open_clip's own and against stored tensors of other people."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from safetensors.numpy import load_file  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from anomalens import backbones  # noqa: E402
from anomalens.backbones import clip as ours  # noqa: E402
from anomalens.errors import MissingWeights, UnknownName, WrongInput  # noqa: E402

PARITY = Path(os.environ.get("ANOMALENS_PARITY") or Path(__file__).parents[3] / "../shared/parity")
GOLDEN = ("winclip", "adaclip", "april_gan")
TINY = "clip:tiny?weights=random"


@pytest.fixture(scope="module")
def clip():
    return ours.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """No network, nothing in any cache."""
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return tmp_path / "cache"


def features(clip, pixels):
    return clip.pool(clip.vision(clip.embed(pixels))[0])


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "network", "file", "weights", "sizes"),
    [
        ("clip:ViT-L-14-336", "ViT-L-14-336", None, "", {}),
        ("clip:ViT-B-16-plus-240?weights=laion400m_e32", "ViT-B-16-plus-240", None, "laion400m_e32", {}),
        ("clip:ViT-B-16@a/b@c?d.pt", "ViT-B-16", Path("a/b@c?d.pt"), "", {}),
        ("clip:@small.safetensors", "", Path("small.safetensors"), "", {}),
        ("clip:?heads=2@small.safetensors", "", Path("small.safetensors"), "", {"heads": 2}),
        ("clip:tiny?weights=random&seed=3&layers=12&patch=14", "tiny", None, "random", {"layers": 12, "patch": 14}),
    ],
)
def test_names_are_read(name, network, file, weights, sizes):
    wanted = ours.parse(name)
    assert (wanted.network, wanted.file, wanted.weights, wanted.sizes) == (network, file, weights, sizes)
    assert wanted.name == name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("tiny", "no text tower"), ("clip:", "incomplete"), ("clip:tiny@", "incomplete"), ("clip:?seed=1", "incomplete"),
        ("clip:tiny?size", "'size'"), ("clip:tiny?colour=3", "'colour=3'"), ("clip:tiny?seed=1&seed=2", "'seed=2'"),
        ("clip:tiny?seed=-1", "whole numbers"), ("clip:tiny?layers=many", "whole numbers"),
        ("clip:tiny?mlp_ratio=big", "whole numbers"), ("clip:tiny?download=maybe", "yes or no"),
        ("clip:tiny?weights=random@file.pt", "leave one of them out"),
    ],
)  # fmt: skip
def test_names_that_say_nothing_are_refused(name, complaint):
    with pytest.raises(WrongInput, match=complaint):
        ours.parse(name)


@pytest.mark.parametrize(
    ("name", "kind", "complaint"),
    [
        ("clip:ViT-B-17", UnknownName, "did you mean"), ("clip:RN50", WrongInput, "vision transformer"),
        ("clip:ViT-B-16-plus-240?weights=e9", UnknownName, "laion400m_e31, laion400m_e32"),
        ("clip:tiny", WrongInput, "weights=random"), ("clip:tiny?weights=random&heads=5", WrongInput, "heads divide"),
        ("clip:tiny?weights=random&patch=0", WrongInput, "above 0"),
        ("clip:tiny?weights=random&size=8", WrongInput, "no room for a patch"),
    ],
)  # fmt: skip
def test_networks_that_do_not_exist(name, kind, complaint):
    with pytest.raises(kind, match=complaint):
        ours.load(name)


def test_an_unknown_device_is_refused():
    with pytest.raises(UnknownName, match="cpu"):
        ours.load(TINY, device="cpus")


def test_the_activation_is_the_one_of_the_training():
    assert ours.activation_of("clip:ViT-B-32") == "quick_gelu"  # OpenAI's
    assert ours.activation_of("clip:ViT-B-32?weights=laion2b_s34b_b79k") == "gelu"
    assert ours.activation_of(TINY) == ours.activation_of("clip:ViT-B-32@file.pt") == "gelu"


# --- weights ----------------------------------------------------------------------------------------------------------


def test_missing_weights_say_which_file_from_where_how_large_and_where_to_put_it(cache):
    with pytest.raises(MissingWeights) as found:
        ours.load("clip:ViT-B-16-plus-240")
    place = cache / "weights" / "timm--vit_base_patch16_plus_clip_240.laion400m_e31.safetensors"
    for part in ("open_clip_model.safetensors", "834 MB", "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
                 "Hugging Face hub", str(place), "download=yes", "clip:ViT-B-16-plus-240@FILE"):  # fmt: skip
        assert part in str(found.value)
    assert "\n" not in str(found.value)
    place.parent.mkdir(parents=True)
    place.touch()
    assert ours._find(ours.parse("clip:ViT-B-16-plus-240")) == place


def test_weights_in_the_cache_of_the_hub_are_found_and_nothing_is_fetched(cache, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: asked.append(a) or str(tmp_path / "held"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("downloaded"))
    assert ours._find(ours.parse("clip:ViT-B-16-plus-240?weights=laion400m_e31&download=yes")) == tmp_path / "held"
    assert asked == [("timm/vit_base_patch16_plus_clip_240.laion400m_e31", "open_clip_model.safetensors")]


def test_a_repository_of_another_training_is_not_taken_for_it(cache):
    """open_clip names the repository of epoch 31 for epoch 32 of this network."""
    with pytest.raises(
        MissingWeights, match=r"holds laion400m_e31; fetch .*laion400m_e32.*clip:ViT-B-16-plus-240@FILE"
    ):
        ours.load("clip:ViT-B-16-plus-240?weights=laion400m_e32")


def test_random_weights_repeat_and_leave_torch_alone(clip, pixels):
    before = torch.random.get_rng_state()
    again, other = ours.load(TINY, device="cpu"), ours.load(f"{TINY}&seed=1", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(features(again, pixels), features(clip, pixels))
    assert again.fingerprint == clip.fingerprint != other.fingerprint
    assert not torch.allclose(features(other, pixels), features(clip, pixels), atol=0.1)
    assert not any(p.requires_grad for p in clip.parameters())


def test_the_fingerprint_sees_every_weight(clip):
    changed = ours.load(TINY, device="cpu")
    with torch.no_grad():
        changed.ln_final.bias[3] += 1e-6
    assert ours._fingerprint(changed) != clip.fingerprint
    assert ours._fingerprint(clip) == clip.fingerprint


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("network", ["", "tiny"])
def test_files_of_weights(clip, pixels, tmp_path, prefix, suffix, network):
    tensors = {prefix + k: v.clone() for k, v in clip.state_dict().items()}
    tensors[f"{prefix}logit_scale"] = torch.tensor(4.6)  # every published file has it
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": tensors, "epoch": 31}, path)
    else:
        save_file(tensors, path)
    loaded = ours.load(f"clip:{network}@{path}", device="cpu")
    assert loaded.shape == clip.shape
    assert loaded.fingerprint == clip.fingerprint
    assert torch.equal(features(loaded, pixels), features(clip, pixels))


def test_weights_that_do_not_fit_are_named(clip):
    held = clip.state_dict()
    short = {k: v for k, v in held.items() if k != "visual.proj"}
    with pytest.raises(WrongInput, match=r"visual\.proj is missing"):
        ours.from_tensors(short)
    with pytest.raises(WrongInput, match=r"visual\.extra is not known"):
        ours.from_tensors({**held, "visual.extra": torch.zeros(1)})
    with pytest.raises(WrongInput, match=r"ln_final\.bias is \(3,\) instead of \(64,\)"):
        ours.from_tensors({**held, "ln_final.bias": torch.zeros(3)})
    with pytest.raises(WrongInput, match="vision transformer"):
        ours.from_tensors({"conv1.weight": torch.zeros(1)})


class Program:
    """What a file could run when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file ran",))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_files_that_are_programs_or_damaged_are_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "archive.pt")
    torch.save({"weight": Program()}, tmp_path / "pickle.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK")
    for name in ("archive", "pickle", "list", "damaged"):
        with pytest.raises(WrongInput, match=r"not a file of plain tensors.*open_clip_model\.safetensors"):
            ours.load(f"clip:@{tmp_path / name}.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"{}")
    with pytest.raises(WrongInput, match="not a readable safetensors file"):
        ours.load(f"clip:@{tmp_path / 'damaged.safetensors'}")
    with pytest.raises(MissingWeights, match="does not exist"):
        ours.load(f"clip:@{tmp_path / 'none.pt'}")


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", GOLDEN)
def test_token_ids_of_other_people(method):
    folder = PARITY / method
    if not (folder / "golden.json").exists():
        pytest.skip(f"no stored tensors in {folder}; set ANOMALENS_PARITY")
    stored = {k: v for k, v in load_file(folder / "golden.safetensors").items() if "token_ids" in k}
    assert stored
    start, end = 49406, 49407
    decoder = open_clip.tokenizer.SimpleTokenizer()
    for name, ids in stored.items():
        sentences = [decoder.decode([i for i in row.tolist() if i not in (0, start, end)]).strip() for row in ids]
        found = ours.tokenise(sentences).numpy()
        assert not found[:, ids.shape[1] :].any(), name
        assert np.array_equal(found[:, : ids.shape[1]], ids), name


def test_tokens_of_one_sentence():
    (row,) = ours.tokenise(["a photo of a damaged metal nut"]).tolist()
    length = row.index(49407)
    assert row[0] == 49406
    assert length == 8
    assert not any(row[length + 1 :])


def test_a_sentence_that_is_too_long_is_refused_not_cut():
    fits, too_long = "nut " * 75, "nut " * 76
    assert ours.tokenise([fits])[0, -1] == 49407
    with pytest.raises(WrongInput, match="78 tokens; CLIP reads 77"):
        ours.tokenise(["a nut", too_long])
    with pytest.raises(WrongInput, match="12 tokens; CLIP reads 8"):
        ours.tokenise(["nut " * 10], context=8)


def test_what_lies_behind_a_sentence_does_not_matter(clip):
    ids = ours.tokenise(["a nut", "a close-up photo of the bolt without damage", "nut " * 40])
    assert torch.allclose(clip.text(ids), clip.text(ids, whole=True), atol=1e-5)
    alone = torch.cat([clip.text(row[None]) for row in ids])
    assert torch.allclose(clip.text(ids), alone, atol=1e-5)


# --- towers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_both_towers_are_those_of_open_clip(pixels, activation):
    small = ours.load(f"{TINY}&width=128&heads=2&text_heads=2&embed=32", activation=activation, device="cpu")
    shape = small.shape
    theirs = open_clip.CLIP(
        embed_dim=shape.embed,
        vision_cfg={
            "layers": shape.layers, "width": shape.width, "head_width": shape.width // shape.heads,
            "patch_size": shape.patch, "image_size": shape.size,
        },
        text_cfg={
            "context_length": shape.context, "vocab_size": shape.vocabulary, "width": shape.text_width,
            "heads": shape.text_heads, "layers": shape.text_layers,
        },
        quick_gelu=activation == "quick_gelu",
    ).eval()  # fmt: skip
    missing = theirs.load_state_dict(small.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == ["logit_scale"]
    ids = ours.tokenise(["a nut", "a photo of a bolt with damage"])
    with torch.no_grad():
        assert torch.allclose(features(small, pixels), theirs.encode_image(pixels), atol=1e-5)
        assert torch.allclose(small.text(ids), theirs.encode_text(ids), atol=1e-5)


def test_quick_gelu_is_not_gelu(clip, pixels):
    quick = ours.load(TINY, activation="quick_gelu", device="cpu")
    assert (features(quick, pixels) - features(clip, pixels)).abs().max() > 1e-3
    x = torch.linspace(-3, 3, 7)
    act = quick.visual.transformer.resblocks[0].activation
    assert torch.allclose(act(x), x / (1 + (-1.702 * x).exp()), atol=1e-6)


def test_half_precision_runs_the_blocks_only(clip, pixels):
    half = ours.load(TINY, precision="bfloat16", device="cpu")
    with half.autocast():
        tokens, _ = half.vision(half.embed(pixels))
    assert torch.allclose(half.pool(tokens.float()), features(clip, pixels), atol=0.1)
    assert not torch.equal(half.pool(tokens.float()), features(clip, pixels))
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_normalising(clip):
    images = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    wanted = (images - np.reshape(ours.CARD.mean, (3, 1, 1))) / np.reshape(ours.CARD.std, (3, 1, 1))
    assert np.allclose(clip.normalise(images), wanted, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 128), (80, 70)])
def test_pictures_that_are_not_square(clip, height, width):
    """Seen as h rows of w patches, each with the position of its place in the picture."""
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    h, w = height // 16, width // 16
    tokens = clip.embed(pixels)
    assert tokens.shape == (1, 1 + h * w, 64)
    grid = clip.visual.conv1(pixels)
    y, x = h - 1, w - 2
    own = grid[0, :, y, x] + clip.positions(h, w)[1 + y * w + x]
    assert torch.allclose(tokens[0, 1 + y * w + x], clip.visual.ln_pre(own), atol=1e-5)
    assert torch.isfinite(features(clip, pixels)).all()


def test_positions_follow_the_picture(clip):
    """Resized positions are the learnt ones where the grids agree: corners stay near corners, rows stay rows."""
    assert clip.positions(4, 4) is clip.visual.positional_embedding
    learnt = clip.visual.positional_embedding[1:].reshape(4, 4, -1)
    resized = clip.positions(8, 4)[1:].reshape(8, 4, -1)
    for y, x in ((0, 0), (0, 3), (3, 0), (3, 3)):
        away = (learnt.reshape(16, -1) - resized[2 * y + (y > 0), x]).norm(dim=1)
        assert int(away.argmin()) == 4 * y + x
    assert torch.equal(clip.positions(8, 4)[0], clip.visual.positional_embedding[0])


@pytest.mark.parametrize("method", ["adaclip", "april_gan"])
def test_resized_positions_of_other_people(method):
    folder = PARITY / method
    if not (folder / "golden.json").exists():
        pytest.skip(f"no stored tensors in {folder}; set ANOMALENS_PARITY")
    config = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    stored = load_file(folder / "golden.safetensors")
    native = stored.get("clip.visual.positional_embedding_native")
    used = stored["clip.visual.positional_embedding"]
    if native is None:
        pytest.skip("this configuration resizes no positions")
    found = {}
    for antialias in (False, True):
        grid, patch = config["vision"]["native_grid"], config["vision"]["patch"]
        clip = ours.load(
            f"{TINY}&width={native.shape[1]}&heads=1&patch={patch}&size={grid * patch}",
            antialias=antialias,
            device="cpu",
        )
        with torch.no_grad():
            clip.visual.positional_embedding.copy_(torch.tensor(native))
        side = config["vision"]["grid"]
        found[antialias] = float(np.abs(clip.positions(side, side).numpy() - used).max())
    right = config["clip"]["position_antialias"]
    assert found[right] <= 1e-6
    if config["vision"]["grid"] < config["vision"]["native_grid"]:  # upward the filter does nothing
        assert found[not right] > 1e-6


def test_antialiasing_matters_for_smaller_pictures():
    plain, smooth = (ours.load(f"{TINY}&size=128", antialias=a, device="cpu") for a in (False, True))
    assert (plain.positions(4, 4) - smooth.positions(4, 4)).abs().max() > 1e-3
    square = plain.visual.positional_embedding[1:].reshape(8, 8, -1).permute(2, 0, 1)[None]
    for clip in (plain, smooth):
        wanted = torch.nn.functional.interpolate(square, (4, 4), mode="bicubic", antialias=clip.antialias)
        assert torch.allclose(clip.positions(4, 4)[1:].T, wanted.flatten(2)[0])


def test_before_sees_and_changes_what_enters_each_block(clip, pixels):
    tokens = clip.embed(pixels)
    seen = []
    last, tapped = clip.vision(tokens, taps=(4, 2), before=lambda i, x: seen.append((i, x)) or x)
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[0][1], tokens)
    assert torch.equal(tapped[0], seen[2][1])  # the output of block 2 enters block 3
    assert torch.equal(tapped[1], last)

    def prompted(index, x):
        """Two learnable tokens more, as methods with prompts add them."""
        return torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1) if index == 1 else x

    prompts = torch.ones(2, 64, requires_grad=True)
    longer, _ = clip.vision(tokens, before=prompted)
    assert longer.shape[1] == tokens.shape[1] + 2
    clip.pool(longer).sum().backward()
    assert prompts.grad.abs().max() > 0


def test_as_a_backbone_it_gives_the_patch_tokens(clip, pixels):
    net = backbones.get(TINY, strides=(16,), device="cpu")
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    (found,) = net(images.numpy())
    tokens, _ = clip.vision(clip.embed(clip.normalise(images)))
    assert found.shape == (2, 64, 4, 6)
    assert torch.allclose(found[1, :, 2, 5], tokens[1, 1 + 2 * 6 + 5], atol=1e-5)
    with pytest.raises(WrongInput, match="one map, of stride 16"):
        backbones.get(TINY, strides=(8, 16))
    with pytest.raises(WrongInput, match="16 pixels"):
        net(np.zeros((1, 3, 8, 64), np.float32))
