"""AdaCLIP on a small random CLIP: what goes where, against slow readings of the paper; files, training, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import anomalens as al  # noqa: E402
from anomalens import datasets, metrics  # noqa: E402
from anomalens.backbones.clip import Shape, load  # noqa: E402
from anomalens.datasets.procedural import Procedural  # noqa: E402
from anomalens.detectors import adaclip as method  # noqa: E402
from anomalens.detectors.adaclip import (  # noqa: E402
    CARD,
    RELEASED,
    AdaCLIP,
    Layout,
    Network,
    fresh,
    kmeans,
    layout_of,
    losses,
    sentences,
)
from anomalens.errors import MissingWeights, WrongInput  # noqa: E402
from anomalens.parts.auxiliary import read_adapter  # noqa: E402
from anomalens.types import Sample, View  # noqa: E402

TINY = "clip:tiny?weights=random"
LARGE = Shape(
    embed=768, size=336, patch=14, width=1024, layers=24, heads=16, text_width=768, text_layers=12, text_heads=12
)
BASE = Shape(
    embed=512, size=224, patch=16, width=768, layers=12, heads=12, text_width=512, text_layers=12, text_heads=8
)
LEGAL = [("", "")] + [(t, b) for t in ("S", "D", "SD") for b in ("", "V", "L", "VL")]


@pytest.fixture(scope="module")
def clip():
    return load(TINY, device="cpu")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """(3, 3, 64, 64) in [0, 1]."""
    return np.random.default_rng(0).random((3, 3, 64, 64), np.float32)


@pytest.fixture(scope="module")
def annotated() -> list[Sample]:
    """Two normal and two anomalous pictures with masks."""
    return Procedural("cloth", size=64, good_count=2, bad_count=2).test()


def made(clip, loud: bool = True, **settings) -> AdaCLIP:
    """A detector on the small CLIP; `loud` prompts are large enough to see what they do."""
    wanted = {"backbone": TINY, "adapter": "random", "image_size": 64, "clusters": 2, "device": "cpu", **settings}
    detector = AdaCLIP(**wanted)
    detector.__dict__["_clip"] = clip
    if loud and detector.adapter == "random":
        for name, values in detector.weights["tensors"].items():
            if "static_prompts" in name:
                values *= 50
    return detector


NAMES = ["metal_nut", "zipper", "metal_nut"]


# --- 1, 2: what is learnt, and its files ------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "count"), [(LARGE, 10_665_472), (BASE, 5_146_368)])
def test_as_many_parameters_as_published(shape, count):
    taps = tuple(shape.layers // 4 * i for i in (1, 2, 3, 4))
    wanted = Layout("SD", "VL", 4, 5, taps).shapes(shape)
    assert len(wanted) == 38
    assert sum(int(np.prod(s)) for s in wanted.values()) == count


def released_like(tmp_path: Path, clip, prefix: str = "clip_model.") -> tuple[Path, dict[str, torch.Tensor]]:
    layout = Layout("SD", "VL", 4, 5, (1, 2, 3, 4))
    tensors = fresh(layout.shapes(clip.shape))
    path = tmp_path / "adapter.pth"
    torch.save({prefix + key: value for key, value in tensors.items()}, path)
    return path, tensors


@pytest.mark.parametrize("prefix", ["clip_model.", "module.clip_model.", "module.", ""])
def test_a_file_like_the_released_ones_is_loaded(tmp_path, clip, prefix):
    path, tensors = released_like(tmp_path, clip, prefix)
    network = made(clip, adapter=str(path), depth=2, length=3, type="S", branch="L").network  # the file says its own
    assert network.layout == Layout("SD", "VL", 4, 5, (1, 2, 3, 4))
    assert all(torch.equal(network.tensors[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("key", ["visual_prompter.static_prompts.2", "patch_token_layer.head.3.bias",
                                 "dynamic_text_prompt_generator.head.4.weight", "cls_token_layer.head.0.weight"])  # fmt: skip
@pytest.mark.parametrize("fault", ["missing", "shape", "extra"])
def test_a_missing_a_foreign_and_a_misshapen_tensor_are_refused(tmp_path, clip, key, fault):
    path, tensors = released_like(tmp_path, clip)
    if fault == "missing":
        del tensors[key]
    elif fault == "shape":
        tensors[key] = torch.zeros(*tensors[key].shape[:-1], 3)
    else:
        tensors[key.replace("head", "tail").replace("prompts.", "prompts.9")] = torch.zeros(3)
    torch.save(tensors, path)
    with pytest.raises(WrongInput, match=r"adapter\.pth does not fit"):
        list(made(clip, adapter=str(path)).predict([]))


def test_an_adapter_of_another_network_is_refused(clip, tmp_path):
    tensors = fresh(Layout("SD", "VL", 4, 5, (1, 2, 3, 4)).shapes(dataclasses.replace(clip.shape, width=96)))
    torch.save(tensors, tmp_path / "wide.pth")
    with pytest.raises(WrongInput, match=r"\(5, 96\) instead of \(5, 64\).*another backbone"):
        list(made(clip, adapter=str(tmp_path / "wide.pth")).predict([]))


def test_without_a_file_the_message_says_what_to_put_where(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path))
    with pytest.raises(MissingWeights) as error:
        list(made(clip, adapter="").predict([]))
    for part in (*RELEASED, "43 MB", "caoyunkang/AdaCLIP", str(tmp_path / "weights"), "train-aux"):
        assert part in str(error.value)


def test_a_released_name_with_other_content_is_refused(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    released_like(tmp_path, clip)[0].rename(tmp_path / "weights" / "pretrained_all.pth")
    with pytest.raises(WrongInput, match=r"pretrained_all\.pth has the name of a published file"):
        list(made(clip, adapter="").predict([]))


@pytest.mark.skipif(
    "ANOMALENS_ADACLIP_WEIGHTS" not in os.environ, reason="set ANOMALENS_ADACLIP_WEIGHTS to their folder"
)
@pytest.mark.parametrize("name", RELEASED)
def test_the_released_files_load_strictly(name):
    path = Path(os.environ["ANOMALENS_ADACLIP_WEIGHTS"]) / name
    tensors, _ = read_adapter(path, ("module.", "clip_model."))
    wanted = Layout("SD", "VL", 4, 5, (6, 12, 18, 24))
    assert {k: tuple(t.shape) for k, t in tensors.items()} == wanted.shapes(LARGE)
    assert layout_of(tensors, {}, Layout("", "", 1, 1, (6, 12, 18, 24))) == wanted
    assert AdaCLIP(adapter=str(path)).weights["facts"]["file"] == name  # the sha256 was compared


@pytest.mark.parametrize(("kind", "branch"), [(t, b) for t, b in LEGAL if "S" in t and b])
@pytest.mark.parametrize(("depth", "length"), [(1, 2), (3, 4)])
def test_the_layout_can_be_read_off_the_shapes(clip, kind, branch, depth, length):
    layout = Layout(kind, branch, depth, length, (1, 3))
    assert layout_of(fresh(layout.shapes(clip.shape)), {}, Layout("SD", "VL", 9, 9, (1, 3))) == layout


# --- 4, 5: where prompts go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "length"), [(4, 5), (1, 3), (2, 1)])
def test_prompts_stand_behind_the_patches(clip, images, depth, length):
    detector = made(clip, type="S", depth=depth, length=length)
    out = detector.trace(images, NAMES, everything=True)
    patches = 17
    for block in range(clip.shape.layers):
        given = out[f"vision.block{block}.in"]
        before = out["vision.embed"] if block == 0 else out[f"vision.block{block - 1}.out"]
        assert given.shape[1] == patches + length
        assert torch.equal(given[:, :patches], before[:, :patches])
        if block < depth:
            prompts = detector.network.tensors[f"visual_prompter.static_prompts.{block}"].half().float()
            assert all(torch.equal(picture, prompts) for picture in given[:, patches:])
        else:
            assert torch.equal(given, before)
    assert out["tokens.3"].shape[1] == patches
    assert torch.equal(out["tokens.3"], out["vision.block3.out"][:, :patches])


@pytest.mark.parametrize(("depth", "length"), [(4, 5), (1, 3), (3, 1)])
def test_prompts_overwrite_the_words_behind_the_start(clip, images, depth, length):
    detector = made(clip, type="S", depth=depth, length=length)
    out = detector.trace(images[:1], ["metal_nut"], everything=True)
    for block in range(1, clip.shape.text_layers):
        given, before = out[f"text.block{block}.in"], out[f"text.block{block - 1}.out"]
        assert given.shape == before.shape == (48, 77, 64)
        if block < depth:
            prompts = detector.network.tensors[f"text_prompter.static_prompts.{block}"].half().float()
            assert all(torch.equal(sentence[1 : 1 + length], prompts) for sentence in given)
            assert torch.equal(given[:, 1 + length :], before[:, 1 + length :])
            assert torch.equal(given[:, 0], before[:, 0])
        else:
            assert torch.equal(given, before)


def test_the_first_text_prompt_does_nothing_and_the_first_visual_one_does(clip, images):
    scores = {}
    for changed in ("", "text_prompter.static_prompts.0", "text_prompter.static_prompts.1",
                    "visual_prompter.static_prompts.0"):  # fmt: skip
        detector = made(clip)
        if changed:
            detector.weights["tensors"][changed][:] = 3
        scores[changed] = detector.trace(images, NAMES)["map"]
    assert torch.equal(scores[""], scores["text_prompter.static_prompts.0"])
    assert not torch.allclose(scores[""], scores["text_prompter.static_prompts.1"])
    assert not torch.allclose(scores[""], scores["visual_prompter.static_prompts.0"])


def test_sentences_shorter_than_the_prompt_give_what_all_77_places_give(clip, images):
    detector = made(clip, length=20)
    short = detector.trace(images[:1], ["nut"])["T"]
    whole = detector.trace(images[:1], ["nut"], everything=True)["T"]
    assert torch.allclose(short, whole, atol=1e-5)


def test_prompts_are_rounded_to_half_precision_unless_told_otherwise(clip, images):
    rounded, exact = (made(clip, prompt_cast=c).trace(images, NAMES, everything=True) for c in ("half", "none"))
    prompts = rounded["vision.block1.in"][:, 17:]
    assert torch.equal(prompts, prompts.half().float())
    assert not torch.equal(exact["vision.block1.in"][:, 17:], prompts)
    assert torch.allclose(rounded["map"], exact["map"], atol=0.05)


def test_dynamic_prompts_are_added_to_the_static_ones(clip, images):
    detector = made(clip, loud=False, prompt_cast="none")
    out = detector.trace(images, NAMES, everything=True)
    t = detector.network.tensors
    for m in range(5):
        head = f"dynamic_visual_prompt_generator.head.{m}"
        dynamic = out["g"] @ t[f"{head}.weight"].T + t[f"{head}.bias"]
        for block in range(4):
            wanted = dynamic + t[f"visual_prompter.static_prompts.{block}"][m]
            assert torch.allclose(out[f"vision.block{block}.in"][:, 17 + m], wanted, atol=1e-5)


# --- 6: sentences -----------------------------------------------------------------------------------------------------


def test_28_normal_and_20_anomalous_sentences(clip, images):
    said = sentences("pipe-fryum")
    assert len(said) == len(set(said)) == 48
    assert said[0] == "a bad photo of a pipe fryum."
    assert said[4] == "a bad photo of a flawless pipe fryum."
    assert said[28] == "a bad photo of a damaged pipe fryum."
    assert said[-1] == "a cropped photo of the pipe fryum with damage."
    T = made(clip).trace(images, NAMES)["T"]
    assert T.shape == (3, 64, 2)
    assert torch.allclose(T.norm(dim=1), torch.ones(3, 2), atol=1e-6)


def test_the_columns_are_normal_and_anomalous(clip):
    from anomalens.backbones.clip import tokenise

    network = made(clip, type="", branch="").network
    features = clip.text(tokenise(sentences("nut"))).numpy().astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    for column, group in enumerate((features[:28], features[28:])):
        mean = group.mean(0)
        assert np.allclose(network.text(["nut"], {}, False)[0, :, column], mean / np.linalg.norm(mean), atol=1e-5)


def test_sentences_are_read_once_where_no_picture_changes_them(clip, images):
    def readings(**settings) -> int:
        network = made(clip, **settings).network
        calls = []
        describe = network.describe
        network.describe = lambda *a: calls.append(a) or describe(*a)
        with torch.no_grad():
            for _ in range(3):
                network(clip.normalise(images), NAMES)
        return len(calls)

    assert readings(type="S") == readings(branch="V") == 2  # names
    assert readings() == 3  # batches


# --- 7: fusion --------------------------------------------------------------------------------------------------------


def test_fusion_is_the_mean_of_clusters_of_the_most_anomalous_patches(clip, images):
    detector = made(clip, clusters=2)
    labels = np.array([[0, 0, 0, 1, 1, 0, 0, 1, 0, 0]] * 3)
    out = {k: v.numpy() for k, v in detector.trace(images, NAMES, labels=labels).items()}
    for b in range(3):
        a = np.mean([out[f"A.{i}"][b] for i in range(4)], axis=0)
        chance = np.exp(a[:, 1]) / np.exp(a).sum(1)
        top = np.argsort(-chance)[:10]
        assert np.array_equal(top, out["hsf.topk_indices"][b])
        rows = [out[f"Z.{i}"][b][top] for i in range(4)]
        clusters = [np.concatenate([r[labels[b] == k] for r in rows]).mean(0) for k in (0, 1)]
        h = np.mean(clusters, axis=0)
        h /= np.linalg.norm(h)
        f = 0.2 * h + 0.8 * out["c"][b]
        f /= np.linalg.norm(f)
        logits = 100 * f @ out["T"][b]
        assert np.allclose(out["hsf.kmeans_input"][b], np.concatenate(rows, axis=1))
        assert np.allclose(out["h"][b], h, atol=1e-6)
        assert np.allclose(out["score"][b], 1 / (1 + np.exp(logits[0] - logits[1])), atol=1e-5)


def test_without_fusion_the_class_token_decides(clip, images):
    out = made(clip, fusion=False).trace(images, NAMES)
    assert torch.equal(out["f"], out["c"])
    assert "h" not in out


def test_flat_pictures_and_more_clusters_than_patches_give_numbers(clip):
    flat = np.full((2, 3, 64, 64), 0.5, np.float32)
    for clusters in (3, 16, 40):
        out = made(clip, clusters=clusters).trace(flat, ["nut", "nut"])
        assert torch.isfinite(out["score"]).all()
        assert out["hsf.labels"].shape == (2, min(16, 5 * clusters))


def test_the_seed_decides_the_clusters(clip, images):
    a, b, c = (made(clip, clusters=3, seed=s).trace(images, NAMES)["hsf.labels"] for s in (0, 0, 5))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def inertia(points: np.ndarray, labels: np.ndarray) -> float:
    return sum(((points[labels == k] - points[labels == k].mean(0)) ** 2).sum() for k in np.unique(labels))


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_ends_where_every_point_is_nearest_to_its_own_mean(seed):
    points = np.random.default_rng(seed).normal(size=(100, 30)).astype(np.float32)
    labels = kmeans(points, 8, seed)
    means = np.stack([points[labels == k].mean(0) for k in range(8)])
    nearest = ((points[:, None] - means) ** 2).sum(-1).argmin(1)
    assert np.array_equal(nearest, labels)


def test_kmeans_is_as_good_as_that_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(12, 1, 40)) * 3 + rng.normal(size=(12, 9, 40))).reshape(-1, 40)
    ours = np.mean([inertia(points, kmeans(points, 10, s)) for s in range(10)])
    theirs = np.mean([cluster.KMeans(10, n_init=1, random_state=s).fit(points).inertia_ for s in range(10)])
    assert ours < 1.02 * theirs


def test_kmeans_finds_plain_clusters_and_few_distinct_points():
    points = np.repeat(np.eye(4), 5, axis=0)
    for k in (4, 7):
        labels = kmeans(points, k)
        assert len(set(labels)) == 4
        assert all(len(set(labels[i : i + 5])) == 1 for i in range(0, 20, 5))
    assert set(kmeans(np.zeros((6, 3)), 3)) == {0}
    assert set(kmeans(np.full((6, 3), np.nan), 3)) == {0}


# --- 8: the map -------------------------------------------------------------------------------------------------------


def test_the_map_is_the_chance_of_anomalous_in_the_mean_of_the_layers(clip, images):
    out = made(clip, taps=(2, 4)).trace(images, NAMES)
    up = [
        torch.nn.functional.interpolate(
            out[f"A.{i}"].transpose(1, 2).reshape(3, 2, 4, 4), (64, 64), mode="bilinear", align_corners=True
        )
        for i in (0, 1)
    ]
    p = ((up[0] + up[1]) / 2).softmax(1)
    assert torch.allclose(out["map"], (p[:, 1] + 1 - p[:, 0]) / 2, atol=1e-5)
    assert out["map"].shape == (3, 64, 64)
    assert out["map"].min() >= 0
    assert out["map"].max() <= 1


def test_the_map_is_blurred_as_scipy_does(clip, images):
    filters = pytest.importorskip("scipy.ndimage")
    out = made(clip, sigma=3.0).trace(images, NAMES)
    for values, smooth in zip(out["map"].numpy(), out["map_smoothed"].numpy(), strict=True):
        assert np.allclose(filters.gaussian_filter(values, sigma=3), smooth, atol=1e-6)


def test_pictures_of_any_size_get_maps_of_their_size(clip):
    pixels = np.random.default_rng(1).integers(0, 256, (50, 90, 3)).astype(np.uint8)
    (p,) = made(clip).predict([Sample("a", {"image": View("image", lambda: pixels)})])
    assert p.map.shape == (50, 90)
    assert 0 <= p.map.min() <= p.map.max() <= 1
    assert 0 <= p.score <= 1


# --- 9: batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SD", "D"])
def test_three_pictures_with_two_names_equal_three_single_ones(clip, images, kind):
    detector = made(clip, type=kind)
    labels = np.array([[0, 0, 0, 1, 1, 0, 0, 1, 0, 0], [1, 0] * 5, [0] * 10])
    together = detector.trace(images, NAMES, labels=labels)
    for b in range(3):
        alone = detector.trace(images[b : b + 1], NAMES[b : b + 1], labels=labels[b : b + 1])
        for key in ("T", "f", "map", "score"):
            assert torch.allclose(alone[key][0], together[key][b], atol=1e-5), key


def test_the_name_of_the_thing_is_given_or_the_category_or_object(clip):
    detector = made(clip)
    sample = Sample("a", {}, category="metal_nut")
    assert detector.called(sample) == "metal_nut"
    assert detector.called(dataclasses.replace(sample, category="")) == "object"
    assert detector.called(dataclasses.replace(sample, category="cvc_colondb")) == "ColonDB"
    assert made(clip, object="bolt").called(sample) == "bolt"


# --- 10, 11: training -------------------------------------------------------------------------------------------------


def slow_losses(out, masks, labels, over) -> dict[str, float]:
    def focal(p, g):
        p, g = p.astype(np.float64), np.clip(g, 1e-5, 1 - 1e-5)
        pt = (1 - g) * p[:, 0] + g * p[:, 1] + 1e-5
        return float((-((1 - pt) ** 2) * np.log(pt)).mean())

    def dice(p, g):
        pairs = [
            pair for x, y in zip(p, g, strict=True) for pair in (zip(x, y, strict=True) if over == "row" else [(x, y)])
        ]
        return float(np.mean([1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in pairs]))

    found = {"cls.focal": focal(out["score"], labels)}
    for i in range(4):
        maps = out[f"maps.{i}"].astype(np.float64)
        found[f"seg.{i}.focal"] = focal(maps, masks)
        found[f"seg.{i}.dice_abnormal"] = dice(maps[:, 1], masks)
        found[f"seg.{i}.dice_normal"] = dice(maps[:, 0], 1 - masks)
    return found


@pytest.mark.parametrize("over", ["row", "image"])
def test_losses_are_those_of_the_paper(clip, images, over):
    out = made(clip).trace(images, NAMES, training=True)
    masks = (np.random.default_rng(0).random((3, 64, 64)) > 0.7).astype(np.float32)
    labels = np.array([1, 0, 1], np.float32)
    got = losses(out, torch.tensor(masks), torch.tensor(labels), None, over)
    wanted = slow_losses({k: v.detach().numpy() for k, v in out.items()}, masks, labels, over)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert float(got[key]) == pytest.approx(value, abs=2e-5), key


def test_a_perfect_answer_costs_nothing_and_a_wrong_one_does():
    masks = torch.zeros(2, 8, 8)
    masks[1, :, :4] = 1
    labels = torch.tensor([0.0, 1.0])
    right = {"score": torch.stack([1 - labels, labels], 1), "maps.0": torch.stack([1 - masks, masks], 1)}
    assert float(sum(losses(right, masks, labels).values())) == pytest.approx(0, abs=1e-3)
    wrong = {key: value.flip(1) for key, value in right.items()}
    assert float(sum(losses(wrong, masks, labels).values())) > 5


def test_pictures_without_mask_teach_the_score_only(clip, images):
    out = made(clip).trace(images, NAMES, training=True)
    masks, labels = torch.ones(3, 64, 64), torch.ones(3)
    assert list(losses(out, masks, labels, np.zeros(3, bool))) == ["cls.focal"]
    some = losses(out, masks, labels, np.array([True, False, True]))
    two = losses({k: v[[0, 2]] for k, v in out.items() if "maps" in k or k == "score"}, masks[:2], labels[:2])
    assert float(some["seg.2.focal"]) == pytest.approx(float(two["seg.2.focal"]))


def test_gradients_reach_the_adapter_alone(clip, images):
    detector = made(clip)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in detector.weights["tensors"].items()}
    network = Network(clip, tensors, detector.network.layout, detector)
    out = network(clip.normalise(images), NAMES, training=True)
    sum(losses(out, torch.zeros(3, 64, 64), torch.zeros(3)).values()).backward()
    without = {k for k, t in tensors.items() if t.grad is None}
    assert without == {"text_prompter.static_prompts.0"}
    assert all(p.grad is None for p in clip.parameters())


def test_a_few_epochs_lower_the_loss_and_leave_clip_alone(clip, annotated, tmp_path):
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    detector = made(clip, adapter="")
    seen: list[float] = []
    trained = detector.train_auxiliary(
        annotated, epochs=6, lr=0.003, mosaic=0.0, out=tmp_path / "a.safetensors",
        report=lambda step, total, figures: seen.append(figures.get("loss", np.nan)),
    )  # fmt: skip
    assert trained.steps == 24
    assert trained.loss < 0.95 * seen[2]  # both are means over the steps so far
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())
    tensors, facts = read_adapter(tmp_path / "a.safetensors")
    assert len(tensors) == 38
    assert facts["trained_on"] == "4 of cloth"
    assert facts["layout"] == {"type": "SD", "branch": "VL", "depth": 4, "length": 5, "taps": [1, 2, 3, 4]}
    assert (facts["select"], facts["validated_on"], facts["steps"]) == ("last", "nothing", 24)
    again = made(clip, adapter=str(tmp_path / "a.safetensors"))
    for a, b in zip(detector.predict(annotated), again.predict(annotated), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.map, b.map)
    assert "a.safetensors, trained on 4 of cloth" in again.state()


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(clip, annotated, tmp_path):
    class Stop(Exception):
        pass

    def stop(step: int, total: int, figures: dict[str, float]) -> None:
        if step == 6:
            raise Stop

    how = {"epochs": 2, "mosaic": 0.3}
    whole = made(clip, adapter="")
    whole.train_auxiliary(annotated, **how)
    with pytest.raises(Stop):
        made(clip, adapter="").train_auxiliary(annotated, checkpoints=tmp_path, report=stop, **how)
    late: list[int] = []
    resumed = made(clip, adapter="")
    resumed.train_auxiliary(
        annotated, checkpoints=tmp_path, report=lambda step, total, figures: late.append(step), **how
    )
    assert late[0] == 4  # the end of the first epoch
    for key, value in whole.weights["tensors"].items():
        assert np.array_equal(value, resumed.weights["tensors"][key]), key
    with pytest.raises(WrongInput, match="another training"):
        made(clip, adapter="").train_auxiliary(annotated[:3], checkpoints=tmp_path, **how)


def test_the_best_epoch_is_kept_only_on_request_and_said(clip, annotated, tmp_path):
    how = {"epochs": 2, "mosaic": 0.0, "validation": annotated}
    detector = made(clip, adapter="")
    last = detector.train_auxiliary(annotated, out=tmp_path / "last.safetensors", **how)
    best = detector.train_auxiliary(annotated, out=tmp_path / "best.safetensors", select="best", **how)
    assert last.scores == best.scores
    assert len(best.scores) == 2
    _, facts = read_adapter(tmp_path / "best.safetensors")
    assert facts["validated_on"] == "4 of cloth"
    assert facts["step_kept"] == max(best.scores, key=lambda s: s[1])[0]
    assert read_adapter(tmp_path / "last.safetensors")[1]["step_kept"] == 8
    maps, masks = zip(*((p.map, s.mask.read() if s.mask else None)
                        for p, s in zip(detector.predict(annotated), annotated, strict=True)), strict=True)  # fmt: skip
    exact = metrics.pixel(maps, masks, which=("f1max",))["f1max"].value
    assert max(s for _, s in best.scores) == pytest.approx(exact, abs=0.02)
    with pytest.raises(WrongInput, match="validation needs anomalous samples"):
        detector.train_auxiliary(annotated, select="best")


def test_the_published_recipe_runs_in_half_precision(clip, annotated):
    stable, published = made(clip, adapter=""), made(clip, adapter="")
    stable.train_auxiliary(annotated, epochs=1, mosaic=0.0)
    trained = published.train_auxiliary(annotated, epochs=1, mosaic=0.0, recipe="published")
    assert trained.skipped == 0
    a, b = (d.weights["tensors"]["cls_token_layer.head.0.bias"] for d in (stable, published))
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.1
    with pytest.raises(WrongInput, match="recipe"):
        stable.train_auxiliary(annotated, recipe="official")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precision_is_close(clip, images, precision):
    exact = made(clip, loud=False).trace(images, NAMES)["map"]
    rough = made(clip, loud=False, precision=precision).trace(images, NAMES)["map"]
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.15


# --- 12: data sets ----------------------------------------------------------------------------------------------------


def test_the_published_figures_are_of_data_sets_that_can_be_read():
    found = {(r.dataset, r.metric.partition("_")[0]) for r in CARD.reported if r.source == "paper"}
    assert {name for name, _ in found} <= set(datasets.names())
    assert len({name for name, _ in found}) == 14
    for name, level in found:
        assert level == "image" or datasets.card(name).masks


def test_figures_without_one_class_are_undefined_instead_of_0():
    measured = metrics.image(np.array([0.2, 0.8]), np.array([1, 1]), which=("auroc",))
    assert np.isnan(measured["auroc"].value)


@pytest.mark.skipif(
    "ANOMALENS_ADACLIP_DATA" not in os.environ,
    reason="set ANOMALENS_ADACLIP_DATA to a folder with mvtec/ and visa/, and ANOMALENS_ADACLIP_WEIGHTS",
)
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "file", "image", "pixel"),
    [("mvtec", "pretrained_visa_clinicdb.pth", 90.3, 89.2), ("visa", "pretrained_mvtec_colondb.pth", 85.8, 95.5)],
)
def test_real_weights_on_real_data(reader, file, image, pixel):
    detector = AdaCLIP(
        adapter=str(Path(os.environ["ANOMALENS_ADACLIP_WEIGHTS"]) / file), precision="float16", batch_size=8
    )
    root, figures = Path(os.environ["ANOMALENS_ADACLIP_DATA"]) / reader, []
    for category in datasets.card(reader).categories:
        samples = datasets.reader(reader)(root, category).test()
        scores, stream = [], metrics.PixelAccumulator()
        for prediction, sample in zip(detector.predict(samples), samples, strict=True):
            scores.append(prediction.score)
            stream.update(prediction.map, sample.mask.read() if sample.mask else None)
        judged = metrics.image(np.array(scores), np.array([s.label for s in samples]), which=("auroc",))
        figures.append((judged["auroc"].value, stream.compute()["auroc"].value))
    assert 100 * np.mean(figures, axis=0) == pytest.approx([image, pixel], abs=2.5)


# --- 14: settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "branch"), LEGAL)
def test_every_legal_type_and_branch_predicts_and_trains(clip, images, annotated, kind, branch):
    detector = made(clip, type=kind, branch=branch, depth=2, length=3, clusters=1, taps=(2, 4))
    out = detector.trace(images, NAMES)
    assert torch.isfinite(out["map"]).all()
    assert torch.isfinite(out["score"]).all()
    trained = detector.train_auxiliary(annotated[:2], epochs=1, mosaic=0.0)
    assert np.isfinite(trained.loss)
    assert detector.network.layout == Layout(kind, branch, 2, 3, (2, 4))


@pytest.mark.parametrize("branch", ["V", "L", "VL"])
def test_a_branch_without_prompts_is_refused(branch):
    with pytest.raises(WrongInput, match="no prompts for branch"):
        AdaCLIP(type="", branch=branch)


def test_settings_that_do_not_fit_the_network_are_refused(clip):
    for settings, complaint in (
        ({"depth": 5}, "depth=5 is more than the 4 blocks of this visual tower"),
        ({"depth": 5, "branch": "L"}, "depth=5 is more than the 4 blocks of this text tower"),
        ({"length": 77}, "length=77 does not fit sentences of 77 tokens"),
        ({"taps": (2, 1)}, "rising order"),
        ({"taps": (3, 5)}, "blocks from 1 to 4"),
        ({"image_size": 70}, "image_size=70 is not a multiple of the patch size 16.*choose 64"),
    ):
        with pytest.raises(WrongInput, match=complaint):
            list(made(clip, loud=False, **settings).predict([]))
    for settings in ({"type": "X"}, {"branch": "LV"}, {"clusters": 0}, {"sigma": -1.0}, {"depth": 0}):
        with pytest.raises(WrongInput):
            AdaCLIP(**settings)
    assert list(made(clip, depth=9, branch="").predict([])) == []  # no prompts, so no depth to fit


def test_any_length_up_to_the_sentence_and_depth_up_to_the_blocks(clip, images):
    for depth, length in itertools.product((1, 4), (1, 8, 76)):
        out = made(clip, depth=depth, length=length).trace(images[:1], NAMES[:1])
        assert torch.isfinite(out["score"]).all()


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_saved_detector_holds_its_adapter(clip, tmp_path, annotated):
    path, _ = released_like(tmp_path, clip)
    detector = made(clip, adapter=str(path))
    wanted = [p.score for p in detector.predict(annotated)]
    al.save(detector, tmp_path / "model")
    path.unlink()
    assert [p.score for p in al.load(tmp_path / "model").predict(annotated)] == wanted


def test_other_weights_of_clip_are_noticed(clip, tmp_path, annotated):
    made(clip, adapter="").train_auxiliary(annotated[:2], epochs=1, out=tmp_path / "a.safetensors")
    other = AdaCLIP(f"{TINY}&seed=1", str(tmp_path / "a.safetensors"), image_size=64, device="cpu")
    with pytest.raises(WrongInput, match="made for other weights of CLIP"):
        list(other.predict([]))


def test_a_file_that_says_nonsense_about_itself_is_refused(clip, tmp_path):
    from safetensors.torch import save_file

    _, tensors = released_like(tmp_path, clip)
    for layout in ({"kind": "SD"}, "SD", {"taps": 3}):
        save_file(tensors, tmp_path / "odd.safetensors", {"adapter": json.dumps({"layout": layout})})
        with pytest.raises(WrongInput, match=r"odd\.safetensors"):
            list(made(clip, adapter=str(tmp_path / "odd.safetensors")).predict([]))


def test_a_copy_of_the_settings_keeps_the_adapter(clip):
    detector = made(clip)
    assert detector.unfitted().weights is detector.weights
    assert method.DETECTOR is AdaCLIP
