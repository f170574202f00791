"""VLAD: it learns from drawn defects on a random small CLIP, its formulas, lessons, files and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import anomalens as al  # noqa: E402
from anomalens import synthesis  # noqa: E402
from anomalens.detectors.vlad import (  # noqa: E402
    DRAWN,
    VLAD,
    Lesson,
    WithLanguage,
    augmented,
    distance,
    forward,
    generations,
    losses,
    phrase_of,
    sentences,
)
from anomalens.errors import MissingWeights, NotFitted, NotMade, UnknownName, WrongInput  # noqa: E402
from anomalens.metrics.auroc import auroc  # noqa: E402
from anomalens.parts.auxiliary import read_adapter  # noqa: E402
from anomalens.synthesis.cut import AnomalyRequest, PasteGenerator  # noqa: E402
from anomalens.synthesis.cut import run as paint  # noqa: E402
from anomalens.types import Sample, View  # noqa: E402

SIZE = 32
TINY = "clip:tiny?weights=random&seed=3&size=32&patch=4&layers=2&width=32&embed=32&text_layers=1&text_width=32"
FIRST: dict[str, VLAD] = {}


def small(**settings) -> VLAD:
    """A detector of random towers, 32 pixels, two blocks of width 32; TINY is built once for all tests."""
    made = VLAD(
        **{
            "backbone": TINY,
            "image_size": SIZE,
            "makers": ("paste",),
            "generations": 12,
            "steps": 4,
            "shots": 0,
            **settings,
        }
    )
    if made.backbone == TINY and made.image_size == SIZE and not made.layers:
        made.__dict__["_eye"] = FIRST.setdefault("eye", made).eye()
    return made


def cloth(seed: int, category: str = "cloth") -> Sample:
    """A woven texture of 32 pixels with a phase and noise of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] + rng.uniform(0, 8, (2, 1, 1))
    weave = 110 + 8 * np.sin(x * np.pi / 3) + 8 * np.sin(y * np.pi / 3)
    pixels = np.clip(weave[..., None] + rng.normal(0, 4, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    return Sample(f"{category}/{seed}", {"image": View("image", partial(np.array, pixels))}, category, 0)


def damaged(seed: int, category: str = "cloth", maker: str = "paste") -> Sample:
    drawn = synthesis.create(maker, size=(0.25, 0.5), severity=(0.9, 1.0))
    return drawn(cloth(seed, category), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def good() -> list[Sample]:
    return [cloth(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def bad() -> list[Sample]:
    return [damaged(seed) for seed in range(100, 112)]


@pytest.fixture(scope="module")
def learnt(good) -> VLAD:
    return small(generations=80, steps=250, lr=1e-2).fit(good)


def pixel_auroc(detector: VLAD, samples: list[Sample]) -> float:
    maps = [p.map.ravel() for p in detector.predict(samples)]
    return auroc(np.concatenate(maps), np.concatenate([s.mask.read().ravel() for s in samples]))


def images_of(samples: list[Sample]) -> np.ndarray:
    return np.stack([np.moveaxis(s.image(), 2, 0) for s in samples]).astype(np.float32) / 255


# Learning --------------------------------------------------------------------------------------------------------------


def test_drawn_defects_teach_a_random_tower(learnt, bad):
    before = pixel_auroc(small(adapter="random"), bad)
    after = pixel_auroc(learnt, bad)
    assert 0.25 < before < 0.75
    assert after >= 0.9, (before, after)


def test_whole_pictures_are_told_apart(learnt, bad):
    fine = [cloth(seed) for seed in range(200, 212)]
    scores = np.array([p.score for p in learnt.predict([*fine, *bad])])
    assert auroc(scores, np.repeat([0, 1], 12)) >= 0.9


def test_what_was_learnt_here_finds_defects_on_other_things(learnt, bad, good):
    other = small(generations=80, lr=1e-2)
    other.train_auxiliary([cloth(seed, "felt") for seed in range(300, 308)], epochs=30)
    assert not other.needs_fit
    assert pixel_auroc(other, bad) >= 0.9  # never saw cloth
    assert "felt" in other.state()
    parts = other.parts
    other.shots = 2
    other.fit(good)  # keeps references and learns nothing
    assert other.parts is parts
    assert len(other.memory["cloth"][0]) == 2 * 64
    assert pixel_auroc(other, bad) >= 0.9
    assert other.unfitted().parts is parts
    assert other.unfitted().memory is None


def test_a_backbone_without_language_learns_too(good, bad):
    detector = VLAD("tiny", image_size=64, makers=("paste",), generations=30, steps=40, shots=2).fit(good)
    assert pixel_auroc(detector, bad) >= 0.9
    named = [replace(s, category="another thing") for s in bad]
    assert [p.score for p in detector.predict(named)] == [p.score for p in detector.predict(bad)]  # no language


def test_learnt_words_move_and_are_kept(good, bad, tmp_path):
    detector = small(learn_prompts=True, steps=3).fit(good)
    start = detector.new_head(True)["prompts"]["words"].detach().numpy()
    moved = np.abs(detector.parts["prompts.words"] - start)
    assert moved.shape == (2, 4, 32)
    assert (moved.max(axis=(1, 2)) > 0).all()  # both sides
    assert moved.max() < 3 * 1e-4 * 1.5  # at their own rate
    al.save(detector, tmp_path / "model")
    again = al.load(tmp_path / "model")
    assert [p.score for p in again.predict(bad)] == [p.score for p in detector.predict(bad)]
    without = small(steps=3).fit(good)
    assert not np.allclose(without.eye().texts(["cloth"], without.head(), (), {}),
                           detector.eye().texts(["cloth"], detector.head(), (), {}))  # fmt: skip


def test_steps_go_before_epochs_before_presets():
    assert small(steps=None).recipe("cpu").steps == 150
    assert small(steps=None).recipe("cuda").epochs == 20
    assert small(steps=None, preset="published").recipe("cpu").epochs == 20
    assert small(steps=None, epochs=3).recipe("cpu").epochs == 3
    both = small(steps=7, epochs=3).recipe("cuda")
    assert (both.steps, both.epochs, both.schedule, both.clip, both.weight_decay) == (7, None, "cosine", 1.0, 1e-4)


def test_kept_features_change_nothing(good, bad):
    kept = small().fit(good)
    computed = small(limit_memory=1).fit(good)
    for a, b in zip(kept.predict(bad), computed.predict(bad), strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-5)


def test_the_best_moment_is_looked_for_on_lessons_that_are_not_learnt_from(good, monkeypatch):
    shown = []
    whole = VLAD.shown
    monkeypatch.setattr(VLAD, "shown", lambda self, *a: shown.append(list(a[2])) or whole(self, *a))
    small(select="best", steps=None, epochs=2).fit(good)
    assert shown == [[i for i in range(12) if i % 5], [0, 5, 10]]
    small().fit(good)
    assert shown[2:] == [list(range(12)), []]


def test_validation_sees_the_words_of_the_moment(good, monkeypatch):
    seen = []
    mean = WithLanguage.mean
    monkeypatch.setattr(
        WithLanguage,
        "mean",
        lambda self, *a: seen.append((torch.is_grad_enabled(), a[1].detach().clone())) or mean(self, *a),
    )
    small(learn_prompts=True, select="best", steps=None, epochs=3).fit(good)
    shown = [words for learning, words in seen if not learning]
    assert len(shown) == 3 * 2  # of each side, after each epoch
    assert not torch.equal(shown[0], shown[2])


def test_an_interrupted_training_goes_on(tmp_path):
    samples = [cloth(seed, "felt") for seed in range(4)]

    def stop(step: int, total: int, figures: dict) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = small()
    whole.train_auxiliary(samples, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        small().train_auxiliary(samples, epochs=4, checkpoints=tmp_path, report=stop)
    resumed = small()
    resumed.train_auxiliary(samples, epochs=4, checkpoints=tmp_path)
    for key, value in whole.parts.items():
        assert np.allclose(resumed.parts[key], value, atol=1e-6), key


# Formulas --------------------------------------------------------------------------------------------------------------


def test_maps_and_scores_by_hand(good, bad):
    detector = small(shots=3, seed=1).fit(good)
    head, eye = detector.head()["adapters"], detector.eye()
    images = images_of(bad[:2])
    banks = [detector.bank_of("cloth")] * 2
    out = detector.trace(images, ["cloth"] * 2, banks)
    tokens, c = (([x.numpy() for x in t], c.numpy()) for t, c in [eye(images)]).__next__()
    T = np.stack([mean_of(eye, group) for group in sentences("cloth")], axis=1)
    s, r = np.zeros((2, 8, 8)), np.zeros((2, 8, 8))
    for layer, f, bank in zip(head["patches"], tokens, banks[0], strict=True):
        v = f @ layer.weight.numpy().T + layer.bias.numpy()
        cosines = v / np.linalg.norm(v, axis=-1, keepdims=True) @ T
        s += (1 / (1 + np.exp((cosines[..., 0] - cosines[..., 1]) / 0.01))).reshape(2, 8, 8) / 2
        rows = bank.numpy()
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        best = (f / np.linalg.norm(f, axis=-1, keepdims=True) @ rows.T).max(axis=-1)
        r += ((1 - best) / 2).reshape(2, 8, 8) / 2
    assert np.allclose(sum(out[f"s.{i}"] for i in range(2)) / 2, s, atol=1e-4)
    assert np.allclose(sum(out[f"r.{i}"] for i in range(2)) / 2, r, atol=1e-5)
    assert np.allclose(out["map"].mean(dim=(1, 2)), (out["s"] + out["r"]).mean(dim=(1, 2)) / 2, atol=1e-3)  # blurred
    down, up = head["picture"]
    hidden = down(torch.from_numpy(c))
    adapted = 0.8 * c + 0.2 * up(torch.nn.functional.gelu(hidden)).numpy()
    cosines = adapted / np.linalg.norm(adapted, axis=1, keepdims=True) @ T
    p = 1 / (1 + np.exp((cosines[:, 0] - cosines[:, 1]) / 0.01))
    assert np.allclose(out["p"], p, atol=1e-4)
    top = np.sort(out["map"].numpy().reshape(2, -1), axis=1)[:, -5:].mean(axis=1)  # 0.5 % of 1024 pixels
    assert np.allclose(out["score"], (p + top) / 2, atol=1e-4)
    predicted = list(detector.predict(bad[:2]))
    assert np.allclose([x.score for x in predicted], out["score"], atol=1e-5)


def mean_of(eye, group: list[str]) -> np.ndarray:
    features = eye.clip.text(al.backbones.clip.tokenise(group), whole=True).numpy()
    mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_a_reference_is_at_no_distance_from_itself(good):
    detector = small(shots=1).fit(good[:1])
    out = detector.trace(images_of(good[:1]), ["cloth"], [detector.bank_of("cloth")])
    assert out["r"].abs().max() < 1e-6
    assert distance(torch.tensor([[2.0, 0], [0, 3.0], [-1, 0], [0, 0]]), torch.tensor([[1.0, 0]])).tolist() == [
        0,
        0.5,
        1,
        0.5,
    ]


def test_turned_references(good):
    plain, turned = (
        small(shots=1, rotations=r, adapter="random", steps=1).fit(good[:1]).memory["cloth"] for r in (False, True)
    )
    assert len(turned[0]) == 4 * len(plain[0])
    assert np.allclose(turned[0][: len(plain[0])], plain[0])


def test_losses_by_hand():
    rng = np.random.default_rng(0)
    s, p = rng.uniform(0.05, 0.95, (2, 4, 4)), rng.normal(size=2)
    truth = rng.choice([0, 1, 255], (2, 4, 4))
    got = losses(torch.from_numpy(s), torch.from_numpy(p), torch.from_numpy(truth), torch.tensor([0.0, 1.0]).double())
    focal = [-((1 - q) ** 2) * np.log(q) for q in np.where(truth == 1, s, 1 - s)[truth != 255]]
    assert float(got["focal"]) == pytest.approx(0.5 * np.mean(focal), abs=1e-3)
    dice = [
        1 - (2 * (a * (t == 1)).sum() + 1) / ((a * (t != 255)).sum() + (t == 1).sum() + 1)
        for a, t in zip(s, truth, strict=True)
    ]
    assert float(got["dice"]) == pytest.approx(np.mean(dice), abs=1e-6)
    bce = [np.log(1 + np.exp(p[0])), np.log(1 + np.exp(-p[1]))]
    assert float(got["bce"]) == pytest.approx(0.5 * np.mean(bce), abs=1e-6)
    changed = torch.from_numpy(np.where(truth == 255, 0.5, s))  # what is ignored does not count
    again = losses(changed, torch.from_numpy(p), torch.from_numpy(truth), torch.tensor([0.0, 1.0]).double())
    assert {k: float(v) for k, v in again.items()} == pytest.approx({k: float(v) for k, v in got.items()})


def test_zero_features_are_no_obstacle():
    detector = VLAD("tiny", image_size=64, adapter="random")
    head, channels = detector.head(), detector.eye().channels
    tokens = [torch.zeros(1, 4, c) for c in channels]
    grids, p = forward(head, tokens, torch.zeros(1, channels[-1]), detector.eye().texts([""], head, (), {}))
    assert all(g.isfinite().all() for g in (*grids, p))


def test_scores_and_maps_lie_in_0_to_1(learnt, good, bad):
    for detector in (
        learnt,
        small(shots=2).fit(good),
        small(adapter="random", sigma=0),
    ):  # K = 0, K = 2, K = 0 untrained
        for prediction in detector.predict([*good, *bad]):
            assert 0 <= prediction.score <= 1
            assert np.isfinite(prediction.map).all()
            assert 0 <= prediction.map.min() <= prediction.map.max() <= 1


# Language --------------------------------------------------------------------------------------------------------------


def test_sentences():
    normal, abnormal = sentences("metal_nut", ("a {crack}",))
    assert (len(normal), len(abnormal)) == (70, 50)
    assert normal[0] == "a photo of metal nut."
    assert "a photo of metal nut with a crack." in abnormal
    assert all("metal nut" in s for s in (*normal, *abnormal))
    learnt_words = sentences("nut", learnt_words=True)
    assert learnt_words[0][1] == "x x x x flawless nut."
    assert [len(group) for group in learnt_words] == [7, 4]


def test_names_with_blanks_and_without(good):
    blank = [replace(s, category="metal nut (small, M4)") for s in good]
    scores = [p.score for p in small(shots=2).fit(blank).predict(blank)]
    assert np.isfinite(scores).all()
    detector = small(adapter="random")
    nameless = [replace(s, category="") for s in good[:2]]
    called = small(adapter="random", object="object")
    assert [p.score for p in detector.predict(nameless)] == [p.score for p in called.predict(good[:2])]
    assert [p.score for p in detector.predict(good[:2])] != [p.score for p in called.predict(good[:2])]


# Lessons ---------------------------------------------------------------------------------------------------------------


def test_lessons_are_pairs_of_the_same_thing(good):
    lessons = small(augment=False, generations=10).lessons(good, [])
    pictures = [s.image() for s in good]
    assert len(lessons) == 10
    for lesson in lessons:
        assert lesson.name == "cloth"
        assert any(np.array_equal(lesson.good, p) for p in pictures)
        source = min(pictures, key=lambda p: (p != lesson.bad).sum())
        changed = (source != lesson.bad).any(axis=2)
        assert lesson.mask.any()
        assert not changed[lesson.mask == 0].any()
    again = small(augment=False, generations=10).lessons(good, [])
    assert all(np.array_equal(a.bad, b.bad) for a, b in zip(lessons, again, strict=True))
    other = small(augment=False, generations=10, seed=1).lessons(good, [])
    assert not all(np.array_equal(a.bad, b.bad) for a, b in zip(lessons, other, strict=True))


def test_augmentation_moves_mask_and_picture_alike():
    rng = np.random.default_rng(0)
    picture, mask = np.full((40, 40, 3), 60, np.uint8), np.zeros((40, 40), np.uint8)
    picture[8:20, 4:16], mask[8:20, 4:16] = 220, 1
    for _ in range(10):
        new, where = augmented(picture, mask, rng)
        assert (new.shape, where.shape, new.dtype) == ((40, 40, 3), (40, 40), np.uint8)
        bright = new[..., 0] > 140
        assert (bright & (where == 1)).sum() / (bright | (where == 1)).sum() > 0.85
    lesson = Lesson("", picture, picture, mask).augmented(rng)
    assert not np.array_equal(lesson.good, lesson.bad)  # each its own way


def test_the_ignored_band_survives_resizing(good):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48], mask[20:44, 20:44] = 255, 1
    sample = replace(good[0], label=1, mask=View("mask", lambda: mask))
    _, resized = small().with_mask(sample)
    assert resized.shape == (SIZE, SIZE)
    assert set(np.unique(resized)) == {0, 1, 255}
    assert (resized == 1).sum() == 12 * 12


def test_given_defects_named_makers_or_half_and_half(good, bad):
    def kinds(detector: VLAD, given: list[Sample]) -> list[int]:
        shown = {s.image().tobytes() for s in given}
        lessons = detector.lessons(good, given)
        return [len(lessons), sum(lesson.bad.tobytes() in shown for lesson in lessons)]

    assert kinds(small(augment=False, makers=()), bad) == [12, 12]
    assert kinds(small(augment=False, makers=("paste",)), bad) == [12, 6]
    assert kinds(small(augment=False, makers=(), generations=5), bad) == [5, 5]
    assert kinds(small(augment=False, makers=()), []) == [12, 0]
    assert not [name for name in DRAWN if synthesis.card(name).needs]


def test_generate_filter_train_detect(good, tmp_path):
    """The whole loop with CUT's interface and no diffusion model."""
    generator = PasteGenerator(image_size=SIZE)
    requests = [AnomalyRequest.of(s.image(), "cloth", "a hole", seed=i, source_id=s.id) for i, s in enumerate(good * 5)]
    summary = paint(generator, requests, tmp_path / "made")
    assert summary.made == 40
    manifest = tmp_path / "made" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[0]["accepted"] = False  # the filter had objections
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    accepted = generations(tmp_path / "made")
    assert len(accepted) == sum(line["accepted"] for line in lines) >= 20
    assert lines[0]["image"] not in {s.id for s in accepted}
    assert {phrase_of(s) for s in accepted} == {"a hole"}
    detector = small(makers=(), generated=str(tmp_path / "made"), generations=50, steps=250, lr=1e-2).fit(good)
    assert detector.trained["lessons"] == len(accepted)
    assert detector.trained["phrases"] == ["a hole"]
    assert pixel_auroc(detector, [damaged(seed) for seed in range(400, 412)]) >= 0.85


def test_the_folder_that_synth_writes(good, tmp_path):
    from anomalens.images import encode

    for kind, folder in (("paste", "test/paste"), ("good", "test/good")):
        for i in range(4):
            sample = damaged(i) if kind == "paste" else cloth(i)
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{i:03d}.png").write_bytes(encode(sample.image()))
            if kind == "paste":
                (tmp_path / "ground_truth/paste").mkdir(parents=True, exist_ok=True)
                mask = np.repeat(sample.mask.read()[..., None], 3, axis=2).astype(np.uint8) * 255
                (tmp_path / f"ground_truth/paste/{i:03d}_mask.png").write_bytes(encode(mask))
    (tmp_path / "manifest.jsonl").write_text('{"file": "test/paste/000.png"}\n')
    assert [s.defect for s in generations(tmp_path)] == ["paste"] * 4
    assert small(makers=(), generated=str(tmp_path), steps=1).fit(good).trained["lessons"] == 4
    both = [*good, *(cloth(seed, "felt") for seed in range(3))]
    with pytest.raises(WrongInput, match=r"has nothing of .*it holds"):
        small(generated=str(tmp_path), steps=1).fit(both)


# Files -----------------------------------------------------------------------------------------------------------------


def test_an_adapter_file_serves_elsewhere(good, bad, tmp_path):
    trained = small(shots=2, learn_prompts=True, phrases=("hole",))
    trained.train_auxiliary([cloth(seed, "felt") for seed in range(4)], epochs=1, out=tmp_path / "a.safetensors")
    loaded = small(shots=2, adapter=str(tmp_path / "a.safetensors"))
    assert not loaded.needs_fit
    assert [p.score for p in loaded.predict(bad)] == [p.score for p in trained.predict(bad)]
    assert "felt" in loaded.state()
    assert [p.score for p in loaded.fit(good).predict(bad)] == [p.score for p in trained.fit(good).predict(bad)]
    al.save(loaded, tmp_path / "model")
    (tmp_path / "a.safetensors").unlink()
    again = al.load(tmp_path / "model")  # needs the file no more
    assert [p.score for p in again.predict(bad)] == [p.score for p in loaded.predict(bad)]
    with pytest.raises(MissingWeights, match="train-aux vlad"):
        list(small(adapter=str(tmp_path / "a.safetensors")).predict(bad))


def test_other_weights_are_refused(good, bad, tmp_path):
    small(steps=1).train_auxiliary(good, epochs=1, out=tmp_path / "a.safetensors")
    other = TINY.replace("seed=3", "seed=4")
    with pytest.raises(WrongInput, match="other weights"):
        list(small(backbone=other, adapter=str(tmp_path / "a.safetensors")).predict(bad))
    al.save(small(steps=1).fit(good), tmp_path / "model")
    with pytest.raises(WrongInput, match="other weights"):
        list(al.load(tmp_path / "model", backbone=other).predict(bad))
    wrong = VLAD("tiny", adapter=str(tmp_path / "a.safetensors"), image_size=64)
    with pytest.raises(WrongInput, match="does not fit"):
        list(wrong.predict(bad))


def test_each_category_has_its_own_references(good, bad):
    both = small(shots=2).fit([*good, *(cloth(seed, "felt") for seed in range(3))])
    assert set(both.memory) == {"cloth", "felt"}
    assert both.trained["lessons"] == 24
    assert "of felt" in both.state()
    with pytest.raises(WrongInput, match="none of 'wood'"):
        list(both.predict([replace(bad[0], category="wood")]))
    alone = small(shots=2).fit(good)
    assert np.isfinite([p.score for p in alone.predict([replace(bad[0], category="wood")])]).all()


# Refusals --------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said(good, bad):
    with pytest.raises(NotFitted):
        list(small().predict(bad))
    with pytest.raises(WrongInput, match="no good picture"):
        small().fit([])
    with pytest.raises(WrongInput, match="no good one of cloth"):
        small().train_auxiliary([*bad, cloth(0, "felt")])
    with pytest.raises(WrongInput, match="no good one"):
        small().train_auxiliary([])
    with pytest.raises(WrongInput, match="cloth/0 has no label"):
        small().train_auxiliary([replace(good[0], label=None)])
    with pytest.raises(UnknownName, match="perlin"):
        small(makers=("perlim",))
    with pytest.raises(WrongInput, match="choose 32"):
        VLAD(TINY, image_size=33, adapter="random").eye()
    with pytest.raises(WrongInput, match="tower of 2"):
        small(layers=(1, 3), adapter="random").eye()
    with pytest.raises(WrongInput, match="above the one before"):
        small(layers=(2, 1))
    with pytest.raises(WrongInput, match="needs a backbone with language"):
        VLAD("tiny", learn_prompts=True)
    with pytest.raises(WrongInput, match="generations=0"):
        small(generations=0)
    with pytest.raises(WrongInput, match="got one in all"):
        small(generations=1, select="best").fit(good)
    flat = [replace(good[0], views={"image": View("image", lambda: np.full((SIZE, SIZE, 3), 90, np.uint8))})]
    with pytest.raises(NotMade, match="blur found nothing to show"):
        small(makers=("blur",), generations=1).fit(flat)


def test_train_aux_writes_a_file_that_inspect_takes(tmp_path):
    from anomalens.apps.tasks import inspect
    from anomalens.apps.train_aux import train_aux
    from anomalens.datasets.procedural import Procedural

    Procedural("cloth", size=64, train_count=1, good_count=1, bad_count=2).write(tmp_path / "data" / "cloth")
    how = {"backbone": TINY, "settings": ["image_size=32"], "quiet": True}
    out = tmp_path / "layers.safetensors"
    data = f"mvtec={tmp_path / 'data'}"
    done = train_aux("vlad", [data], str(out), epochs=1, **how)
    assert (done["pictures"], done["anomalous"], done["steps"]) == (3, 2, 1)
    assert read_adapter(out)[1]["pictures"] == {"cloth": 3}
    with pytest.raises(WrongInput, match="no --validate"):
        train_aux("vlad", [data], str(tmp_path / "b.safetensors"), validate=[data], **how)
    how["settings"].append(f"adapter={out}")
    new = tmp_path / "data" / "cloth" / "test" / "good"
    found = inspect(str(new), None, str(tmp_path / "report"), method="vlad", **how)
    assert "1 picture:" in found["words"]
