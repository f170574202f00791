"""APRIL-GAN: the acceptance criteria of its specification on a random small CLIP, its references, files and refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import anomalens as al  # noqa: E402
from anomalens.detectors.april_gan import AprilGan, class_minmax, losses, nearest, sentences  # noqa: E402
from anomalens.errors import MissingWeights, WrongInput  # noqa: E402
from anomalens.parts.auxiliary import read_adapter  # noqa: E402
from anomalens.types import Sample, View  # noqa: E402

TINY = "clip:tiny?weights=random&seed=3&text_layers=1"
CLIP = "clip:tiny?weights=random&layers=12&patch=14&size=42&text_layers=1"


HELD: dict[str, AprilGan] = {}


def small(**settings) -> AprilGan:
    """A detector of random towers; those of TINY and their sentences are made once for all tests."""
    made = AprilGan(**{"backbone": TINY, "adapter": "random", "image_size": 64, "batch_size": 4, **settings})
    if made.backbone == TINY and made.image_size == 64 and "layers" not in settings:
        first = HELD.setdefault("first", made)
        made.use(first.clip())
        made.__dict__["_texts"] = first.__dict__.setdefault("_texts", {})
    return made


def picture(seed: int, name: str = "", category: str = "cloth", label: int | None = 0, mark: bool = False) -> Sample:
    """Noise of 64 pixels, with a bright square and its mask where it is marked."""
    pixels = np.random.default_rng(seed).integers(60, 120, (64, 64, 3)).astype(np.uint8)
    mask = np.zeros((64, 64), bool)
    if mark:
        pixels[16:40, 20:44], mask[16:40, 20:44] = 250, True
    view = View("mask", lambda: mask) if mark else None
    return Sample(name or f"{seed}", {"image": View("image", lambda: pixels)}, category, label, view)


@pytest.fixture(scope="module")
def pictures() -> list[Sample]:
    return [picture(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def annotated() -> list[Sample]:
    return [picture(seed, label=seed % 2, mark=bool(seed % 2)) for seed in range(8)]


# Language --------------------------------------------------------------------------------------------------------------


def test_420_sentences_in_their_order():
    normal, abnormal = sentences("metal_nut")
    assert (len(normal), len(abnormal)) == (245, 175)
    assert len({*normal, *abnormal}) == 420
    assert normal[0] == "a bad photo of a metal_nut."
    assert normal[34] == "this is one metal_nut in the scene."
    assert normal[35] == "a bad photo of a flawless metal_nut."
    assert abnormal[0] == "a bad photo of a damaged metal_nut."
    assert abnormal[-1] == "this is one metal_nut with damage in the scene."


def test_text_columns_are_unit_means_normal_first():
    detector = small()
    T = detector.text("wood")
    for column, group in zip(T.T, sentences("wood"), strict=True):
        features = detector.clip().text(al.backbones.clip.tokenise(group), whole=True)
        total = sum(f / torch.linalg.vector_norm(f) for f in features)
        assert torch.allclose(column, total / torch.linalg.vector_norm(total), atol=1e-5)
    assert detector.text("wood") is T  # made once
    assert not torch.equal(detector.text("metal"), T)


def test_the_given_name_goes_before_the_category(pictures):
    scores = [next(iter(small(object=name).predict(pictures[:1]))).score for name in ("metal", "", "cloth")]
    assert scores[1] == scores[2] != scores[0]
    nameless = next(iter(small().predict([picture(0, category="")]))).score
    assert nameless == next(iter(small(object="object").predict(pictures[:1]))).score


# Maps and scores -------------------------------------------------------------------------------------------------------


def traced(detector: AprilGan, samples: list[Sample]) -> dict:
    images = np.stack([np.moveaxis(s.image(), 2, 0) for s in samples]).astype(np.float32) / 255
    clip = detector.clip()
    return detector.trace(clip.normalise(images), [detector.text(s.category) for s in samples])


def test_the_map_is_the_sum_of_the_softmaxes_and_nothing_else(pictures):
    detector = small()
    stages = traced(detector, pictures)
    T = detector.text("cloth").numpy()
    total = np.zeros((4, 64, 64))
    for i in range(4):
        fc = detector.linear_layers()["fc"][i]
        Z = stages[f"tokens.{i}"][:, 1:].numpy() @ fc.weight.numpy().T + fc.bias.numpy()
        logits = 100 * (Z / np.linalg.norm(Z, axis=-1, keepdims=True)) @ T
        across = aligned(4, 64)
        big = np.einsum("yi,bijc,xj->byxc", across, logits.reshape(4, 4, 4, 2), across)
        total += 1 / (1 + np.exp(big[..., 0] - big[..., 1]))
    assert np.abs(stages["map_zero_shot"].numpy() - total).max() < 1e-4
    assert stages["map_zero_shot"].min() >= 0
    assert stages["map_zero_shot"].max() <= 4
    predicted = np.stack([p.map for p in detector.predict(pictures)])
    assert np.allclose(predicted, total, atol=1e-4)  # pictures of this size: neither resized nor smoothed


def aligned(cells: int, size: int) -> np.ndarray:
    """(size, cells) weights of linear interpolation where the corners keep their values."""
    at = np.linspace(0, cells - 1, size)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))


def test_the_image_score_does_not_know_the_linear_layers(pictures):
    one, other = small(seed=1), small(seed=2)
    a, b = (list(d.predict(pictures)) for d in (one, other))
    assert [p.score for p in a] == [p.score for p in b]
    assert not any(np.allclose(p.map, q.map, atol=1e-3) for p, q in zip(a, b, strict=True))
    stages = traced(one, pictures)
    f = stages["image_features"].numpy()
    logits = 100 * f / np.linalg.norm(f, axis=1, keepdims=True) @ one.text("cloth").numpy()
    assert np.allclose([p.score for p in a], 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), atol=1e-4)


def test_default_taps_are_the_quarters_of_the_depth():
    assert small().taps() == ((1, 2, 3, 4), (1, 2, 3, 4))
    assert small(backbone=CLIP, image_size=42).taps()[0] == (3, 6, 9, 12)
    assert small(layers=(2, 4)).taps() == ((2, 4), (2, 4))
    assert small(layers=(2, 4), few_shot_layers=(3,)).taps() == ((2, 4), (3,))


def test_published_size():
    """ViT-L-14-336 has 3,148,800 numbers to learn; here four layers of its sizes, around a smaller tower."""
    detector = small(backbone="clip:tiny?weights=random&width=1024&embed=768&heads=16&mlp_ratio=0.1&vocabulary=8")
    assert sum(p.numel() for p in detector.linear_layers().parameters()) == 3_148_800


@pytest.mark.parametrize(("size", "kind"), [(42, "QuickGELU"), (56, "GELU")])
def test_the_activation_depends_on_the_size(size, kind):
    detector = small(backbone=CLIP, image_size=size)
    assert type(detector.clip().visual.transformer.resblocks[0].activation).__name__ == kind
    fixed = small(backbone=CLIP, image_size=size, activation="gelu")
    assert type(fixed.clip().visual.transformer.resblocks[0].activation).__name__ == "GELU"


def test_antialias_changes_smaller_grids_and_enlarged_ones_alike_by_bicubic():
    native = small(backbone=CLIP, image_size=70).clip().visual.positional_embedding
    square = native[1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    for antialias in (True, False):
        used = small(backbone=CLIP, image_size=70, antialias=antialias).clip().positions(5, 5)
        sized = torch.nn.functional.interpolate(square, (5, 5), mode="bicubic", antialias=antialias)
        assert torch.allclose(used[1:], sized[0].flatten(1).T, atol=1e-6)


# References ------------------------------------------------------------------------------------------------------------


def test_a_picture_is_at_no_distance_from_itself(pictures):
    detector = small().fit(pictures[:1])
    clip, banks = detector.clip(), [detector.bank_of("cloth")]
    images = np.moveaxis(pictures[0].image(), 2, 0)[None].astype(np.float32) / 255
    stages = detector.trace(clip.normalise(images), [detector.text("cloth")], banks)
    for m in range(4):
        assert stages[f"few_shot_map.{m}"].abs().max() < 1e-5
    assert torch.allclose(stages["map_few_shot_total"], stages["map_zero_shot"], atol=1e-4)


def test_more_references_never_add_distance(pictures):
    maps = []
    for count in (1, 2, 3):
        detector = small().fit(pictures[:count])
        maps.append(next(iter(detector.predict(pictures[3:]))).map)
    assert (maps[1] <= maps[0] + 1e-5).all()
    assert (maps[2] <= maps[1] + 1e-5).all()
    assert maps[2].mean() < maps[0].mean()


def test_nearest_by_hand():
    rng = np.random.default_rng(0)
    patches, bank = rng.normal(size=(7, 5)), rng.normal(size=(11, 5))
    cosines = [[p @ b / np.sqrt(p @ p) / np.sqrt(b @ b) for b in bank] for p in patches]
    got = nearest(torch.from_numpy(patches), torch.from_numpy(bank)).numpy()
    assert np.allclose(got, 1 - np.max(cosines, axis=1))
    assert np.allclose(nearest(torch.tensor([[1.0, 0]]), torch.tensor([[-2.0, 0]])), 2)


def test_each_category_has_its_own_references(pictures):
    metal = [picture(seed, category="metal") for seed in (10, 11)]
    both = small().fit([*pictures[:2], *metal])
    assert set(both.memory) == {"cloth", "metal"}
    alone = small().fit(pictures[:2])
    a, b = (next(iter(d.predict(pictures[2:3]))) for d in (both, alone))
    assert a.score == pytest.approx(b.score, abs=1e-6)
    assert np.allclose(a.map, b.map, atol=1e-5)
    with pytest.raises(WrongInput, match="references of cloth, metal, none of 'wood'"):
        list(both.predict([picture(1, category="wood")]))
    assert len(list(alone.predict([picture(1, category="wood")]))) == 1  # one category serves for all
    assert "32 patches of cloth" in alone.state()


def test_no_more_than_shots_are_kept_the_same_ones_by_seed(pictures):
    rows = [small(shots=2, seed=seed).fit(pictures).memory["cloth"][0] for seed in (0, 0, 1)]
    assert rows[0].shape == (2 * 16, 64)
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    with pytest.raises(WrongInput, match="no reference"):
        small().fit([])


def test_fixed_scores_judge_a_picture_by_itself(pictures):
    detector = small().fit(pictures[:2])
    zero_shot = [p.score for p in small().predict(pictures)]
    for p, score in zip(detector.predict(pictures), zero_shot, strict=True):
        assert p.score == pytest.approx((score + p.map.max() / (4 + 2 * 4)) / 2, abs=1e-5)


def test_class_minmax_scores_need_all_pictures(pictures):
    metal = [picture(seed, category="metal") for seed in (10, 11, 12)]
    mixed = [pictures[2], metal[1], pictures[3], metal[2]]
    detector = small(image_norm="class_minmax").fit([*pictures[:2], *metal[:1]])
    zero_shot = [p.score for p in small().predict(mixed)]
    predictions = list(detector.predict(mixed))
    assert [p.id for p in predictions] == [s.id for s in mixed]
    for pair in ((0, 2), (1, 3)):
        peaks = [predictions[i].map.max() for i in pair]
        for i in pair:
            share = (predictions[i].map.max() - min(peaks)) / (max(peaks) - min(peaks))
            assert predictions[i].score == pytest.approx((zero_shot[i] + share) / 2, abs=1e-4)
    assert list(detector.predict([])) == []


def test_class_minmax_of_equal_peaks_is_finite():
    assert class_minmax([0.4, 0.6], [3.0, 3.0], ["a", "a"]) == [0.2, 0.3]
    assert class_minmax([0, 0, 0], [1, 3, 7], ["a", "a", "b"]) == [0, 0.5, 0]


def test_references_survive_saving_and_other_weights_are_noticed(pictures, tmp_path):
    detector = small().fit(pictures[:2])
    al.save(detector, tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    for a, b in zip(detector.predict(pictures), loaded.predict(pictures), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.map, b.map)
    with pytest.raises(WrongInput, match="learnt with other weights"):
        list(
            al.load(tmp_path / "model", backbone="clip:tiny?weights=random&seed=4&text_layers=1").predict(pictures[:1])
        )


# Training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("reduction", ["image", "row"])
def test_losses_equal_loops(batch, reduction):
    rng = np.random.default_rng(batch)
    abnormal, masks = rng.random((2, batch, 5, 6)), rng.integers(0, 2, (batch, 5, 6)).astype(float)
    maps = [torch.from_numpy(np.stack([1 - a, a], axis=1)) for a in abnormal]
    got = losses(maps, torch.from_numpy(masks), reduction)
    assert list(got) == ["0.focal", "0.dice", "1.focal", "1.dice"]
    for layer in (0, 1):
        each, parts = [], []
        for p, g in zip(abnormal[layer], masks, strict=True):
            for value, truth in zip(p.ravel(), g.ravel(), strict=True):
                y = min(max(truth, 1e-5), 1 - 1e-5)
                of_class = y * value + (1 - y) * (1 - value) + 1e-5
                each.append(-((1 - of_class) ** 2) * np.log(of_class))
            for rows in [slice(None)] if reduction == "image" else range(5):
                a, b = p[rows], g[rows]
                parts.append(1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1))
        assert float(got[f"{layer}.focal"]) == pytest.approx(np.mean(each))
        assert float(got[f"{layer}.dice"]) == pytest.approx(np.mean(parts))


@pytest.fixture(scope="module")
def trained(annotated) -> tuple[AprilGan, dict, float, float]:
    """After 30 epochs on eight pictures; CLIP's weights before, and the loss before and after."""
    detector = small(seed=5)
    held = {k: v.clone() for k, v in detector.clip().state_dict().items()}
    seen = []
    detector.train_auxiliary(annotated, epochs=30, report=lambda step, total, figures: seen.append(figures.get("loss")))
    return detector, held, seen[1], seen[-1]


def test_training_fits_eight_pictures_and_leaves_clip_alone(trained, annotated):
    detector, held, before, after = trained
    assert after < 0.9 * before
    assert all(torch.equal(v, held[k]) for k, v in detector.clip().state_dict().items())
    inside, outside = [], []
    for p, s in zip(detector.predict(annotated), annotated, strict=True):
        if s.mask:
            inside.append(p.map[s.mask.read()].mean())
            outside.append(p.map[~s.mask.read()].mean())
    assert np.mean(inside) > np.mean(outside) + 0.5


def test_training_is_the_same_for_the_same_seed(annotated, tmp_path):
    runs = [small(seed=s) for s in (1, 1, 2)]
    for i, run in enumerate(runs):
        run.train_auxiliary(annotated, epochs=1, batch=4, mosaic=0.5, out=tmp_path / f"{i}.safetensors")
    files = [(tmp_path / f"{i}.safetensors") for i in range(3)]
    assert np.array_equal(runs[0].fc["fc.0.weight"], runs[1].fc["fc.0.weight"])
    assert not np.array_equal(runs[0].fc["fc.0.weight"], runs[2].fc["fc.0.weight"])
    again = small(adapter=str(files[0]))
    assert all(torch.equal(v, torch.from_numpy(runs[0].fc[k])) for k, v in again.linear_layers().state_dict().items())
    with pytest.raises(WrongInput, match="trained on other weights"):
        small(adapter=str(files[0]), backbone="clip:tiny?weights=random&seed=9&text_layers=1").linear_layers()


def test_what_was_trained_is_saved_and_outlives_unfitted(trained, pictures, tmp_path):
    detector = trained[0]
    al.save(detector, tmp_path / "model")
    wanted = next(iter(detector.predict(pictures))).map
    assert np.array_equal(next(iter(al.load(tmp_path / "model").predict(pictures))).map, wanted)
    assert np.array_equal(next(iter(detector.unfitted().predict(pictures))).map, wanted)
    fitted = detector.unfitted().fit(pictures[:1])
    assert fitted.memory
    assert detector.memory is None
    assert fitted.unfitted().memory is None


def test_pictures_without_a_mask_do_not_train(annotated):
    unknown = picture(99, label=1)
    a, b = small(), small()
    a.train_auxiliary(annotated[:4], epochs=1, mosaic=0)
    b.train_auxiliary([*annotated[:4], unknown], epochs=1, mosaic=0)
    assert np.array_equal(a.fc["fc.0.weight"], b.fc["fc.0.weight"])
    with pytest.raises(WrongInput, match="no label"):
        small().train_auxiliary([picture(1, label=None)])


# Files -----------------------------------------------------------------------------------------------------------------


def published(
    folder: Path, width: int = 64, embed: int = 64, layers: int = 4, name: str = "visa_pretrained.pth"
) -> Path:
    """A file in the authors' format."""
    make = torch.Generator().manual_seed(0)
    tensors = {}
    for i in range(layers):
        tensors[f"fc.{i}.weight"] = torch.randn(embed, width, generator=make)
        tensors[f"fc.{i}.bias"] = torch.randn(embed, generator=make)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"trainable_linearlayer": tensors}, folder / name)
    return folder / name


def test_published_files_are_read_strictly(tmp_path, monkeypatch, pictures):
    path = published(tmp_path)
    detector = small(adapter=str(path))
    stored = torch.load(path, weights_only=True)["trainable_linearlayer"]
    assert len(stored) == 8
    assert all(torch.equal(v, stored[k]) for k, v in detector.linear_layers().state_dict().items())
    with pytest.raises(WrongInput, match=r"fc\.3\.weight is missing"):
        small(adapter=str(published(tmp_path / "three", layers=3))).linear_layers()
    with pytest.raises(WrongInput, match=r"fc\.4\.weight is not known"):
        small(adapter=str(published(tmp_path / "five", layers=5))).linear_layers()
    with pytest.raises(WrongInput, match=r"\(64, 32\) instead of \(64, 64\)"):
        small(adapter=str(published(tmp_path / "other", width=32))).linear_layers()
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path))
    published(tmp_path / "weights")
    found = small(adapter="")  # in the cache folder, without being named
    assert found.adapter_file() == tmp_path / "weights" / "visa_pretrained.pth"
    wanted = next(iter(found.predict(pictures))).map
    al.save(found, tmp_path / "model")
    found.adapter_file().unlink()  # what is saved needs the file no more
    assert np.array_equal(next(iter(al.load(tmp_path / "model").predict(pictures))).map, wanted)


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch, pictures):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path))
    for act in (lambda d: list(d.predict(pictures[:1])), lambda d: d.fit(pictures[:1])):
        with pytest.raises(MissingWeights) as told:
            act(small(adapter=""))
        for part in (
            "visa_pretrained.pth",
            "mvtec_pretrained.pth",
            "13 MB",
            "VAND-APRIL-GAN",
            str(tmp_path / "weights"),
        ):
            assert part in str(told.value)
    with pytest.raises(MissingWeights, match=r"nowhere\.pth is not a file"):
        small(adapter="nowhere.pth").linear_layers()


def test_a_program_in_disguise_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"trainable_linearlayer": print}, path)
    with pytest.raises(WrongInput, match="not a readable file of tensors"):
        small(adapter=str(path)).linear_layers()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (4, 2)}, "each above the one before"),
        ({"few_shot_layers": (0, 1)}, "from 1 up"),
        ({"shots": 0}, "shots=0"),
        ({"image_size": 70}, "choose 64"),
        ({"layers": (1, 5)}, "taps block 5 of a tower of 4"),
        ({"backbone": "tiny"}, "no text tower"),
    ],
)
def test_settings_that_do_not_fit(settings, message, pictures):
    with pytest.raises(WrongInput, match=message):
        list(small(**settings).predict(pictures[:1]))


# The command ----------------------------------------------------------------------------------------------------------


def test_train_aux_writes_a_file_that_inspect_takes(tmp_path):
    from anomalens.apps.tasks import inspect
    from anomalens.apps.train_aux import train_aux
    from anomalens.datasets.procedural import Procedural

    Procedural("cloth", size=64, train_count=1, good_count=1, bad_count=2).write(tmp_path / "data" / "cloth")
    how = {"backbone": TINY, "settings": ["image_size=32"], "quiet": True}
    out = tmp_path / "layers.safetensors"
    data = f"mvtec={tmp_path / 'data'}"
    done = train_aux("vand", [data], str(out), epochs=1, **how)
    assert (done["pictures"], done["anomalous"], done["steps"]) == (3, 2, 1)
    assert read_adapter(out)[1]["trained_on"] == {"cloth": 3}
    with pytest.raises(WrongInput, match="no --validate"):
        train_aux("april-gan", [data], str(tmp_path / "b.safetensors"), validate=[data], **how)
    how["settings"].append(f"adapter={out}")
    new = tmp_path / "data" / "cloth" / "test" / "good"
    found = inspect(str(new), None, str(tmp_path / "report"), method="april-gan", **how)
    assert "1 picture:" in found["words"]


# Real weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.gpu
def test_published_accuracy_on_mvtec():
    """Set ANOMALENS_APRIL_GAN to a backbone (clip:ViT-L-14-336@FILE), visa_pretrained.pth and MVTec AD, joined by `;`."""
    given = os.environ.get("ANOMALENS_APRIL_GAN", "").split(";")
    if len(given) != 3:
        pytest.skip("ANOMALENS_APRIL_GAN does not name a backbone, visa_pretrained.pth and the folder of MVTec AD")
    from anomalens import metrics
    from anomalens.datasets.mvtec import MVTecAD

    backbone, adapter, root = given
    detector = AprilGan(backbone=backbone, adapter=adapter)
    image, pixel = [], []
    for category in sorted(p.name for p in Path(root).iterdir() if (p / "ground_truth").is_dir()):
        samples = MVTecAD(root, category).test()
        predictions = list(detector.predict(samples))
        image.append(metrics.get("auroc")([p.score for p in predictions], [s.label for s in samples]))
        masks = (s.mask.read() if s.mask else None for s in samples)
        found = metrics.pixel((p.map for p in predictions), masks, which=("auroc",), variant="stream")
        pixel.append(found["auroc"].value)
    assert np.mean(image) == pytest.approx(0.861, abs=0.003)
    assert np.mean(pixel) == pytest.approx(0.876, abs=0.005)
