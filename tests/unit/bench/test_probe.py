"""What is measured of folders: drawn categories are recognised, large and damaged pictures are survived."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalens.bench import probe
from anomalens.bench.probe import alignment, grey, on_disk, some_pictures, unevenness
from anomalens.bench.recommend import Query
from anomalens.datasets.procedural import Procedural
from anomalens.errors import Unreadable
from anomalens.types import Sample, View, Weights

from ..spec_cards import CARDS

TEXTURES = ("cloth", "leather", "metal", "stripes", "terrazzo", "tiles", "wood")
ALIGNED = ("board", "cap", "gear", "pill", "relief", "screw", "tray")


def good(category: str, count: int = 8) -> list[np.ndarray]:
    drawn = Procedural(category, size=128, train_count=count, good_count=0, bad_count=0)
    return [grey(s.image()) for s in drawn.train()]


@pytest.mark.parametrize("category", TEXTURES)
def test_drawn_textures_are_even(category):
    assert np.median([unevenness(g) for g in good(category, 4)]) < probe.EVEN


@pytest.mark.parametrize("category", [*ALIGNED, "cookie"])
def test_drawn_objects_are_not(category):
    assert np.median([unevenness(g) for g in good(category, 4)]) > probe.EVEN


@pytest.mark.parametrize("category", ALIGNED)
def test_things_that_lie_the_same_way_agree(category):
    assert alignment(good(category))[0] >= probe.ALIGNED


def test_things_that_are_turned_do_not_even_when_shifted():
    still, nearly = alignment(good("cookie"))
    assert still <= nearly < probe.ALIGNED


def test_small_shifts_are_undone():
    rng = np.random.default_rng(0)
    moved = [np.roll(g, tuple(rng.integers(-10, 11, 2)), axis=(0, 1)) for g in good("gear", 12)]
    still, nearly = alignment(moved)
    assert still < probe.ALIGNED <= nearly


def test_flat_pictures_give_numbers():
    flat = [np.full((128, 128), 7.0)] * 3
    assert unevenness(flat[0]) == 0
    assert alignment(flat) == (0, 0)


def test_a_category_on_disk(tmp_path):
    Procedural("gear", size=128, train_count=10, good_count=2, bad_count=3).write(tmp_path / "gear")
    facts = probe.probe(tmp_path / "gear")
    assert (facts.normals, facts.abnormals, facts.test, facts.pictures) == (10, 0, 5, 15)
    assert (facts.surface, facts.pose, facts.views, facts.longest) == ("object", "aligned", ("image",), 128)
    assert not facts.unlabelled
    assert "10 good pictures, 5 to test on" in facts.words()
    assert facts == probe.probe(tmp_path / "gear")
    query = Query(**facts.query())
    assert (query.normals, query.test_batch, query.pose) == (10, 5, "aligned")


def test_bad_pictures_outside_of_a_test_folder_may_be_learnt_from(tmp_path):
    parts = Procedural("cloth", size=64, train_count=4, good_count=0, bad_count=3)
    for name, samples in (("good", parts.train()), ("bad", parts.test())):
        (tmp_path / name).mkdir()
        for i, sample in enumerate(samples):
            Image.fromarray(sample.image()).save(tmp_path / name / f"{i}.png")
    facts = probe.probe(tmp_path)
    assert (facts.normals, facts.abnormals, facts.test) == (3, 3, 0)  # one good picture is kept for testing
    assert (facts.surface, facts.pose, facts.alignment) == ("texture", "unknown", None)


def test_several_lights_categories_and_no_labels(tmp_path):
    lights = Procedural("relief", size=64, train_count=3, good_count=0, bad_count=0)
    for category in ("a", "b"):
        for i, sample in enumerate(lights.train()):
            folder = tmp_path / category / "train" / "good" / str(i)
            folder.mkdir(parents=True)
            for name, view in sample.views.items():
                Image.fromarray(view.read()).save(folder / f"{name}.png")
    facts = probe.probe(tmp_path)
    assert (facts.views, facts.categories, facts.normals) == (("lights",), 2, 6)
    assert "several lights" in facts.words()
    plain = tmp_path / "plain"
    plain.mkdir()
    for i in range(2):
        Image.fromarray(np.full((20, 30, 3), 9 * i, np.uint8)).save(plain / f"{i}.png")
    facts = probe.probe(plain)
    assert facts.unlabelled
    assert "taken as good" in facts.words()
    assert facts.alignment is None  # two pictures say nothing about a pose


def test_mixed_categories_leave_the_surface_open(tmp_path):
    for category in ("gear", "cloth"):
        Procedural(category, size=64, train_count=3, good_count=0, bad_count=0).write(tmp_path / category)
    assert probe.probe(tmp_path).surface == "unknown"


def test_at_most_64_pictures_fewer_when_large():
    read = []

    def look(i: int) -> np.ndarray:
        read.append(i)
        return np.zeros((8, 8, 3), np.uint8)

    samples = [Sample(str(i), {"image": View("image", lambda i=i: look(i))}) for i in range(1000)]
    assert len(some_pictures(samples)[0]) == len(read) == 64
    assert max(read) > 900


def test_large_pictures_are_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "PIXELS", 20_000)
    for i in range(9):
        Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / f"{i}.png")
    samples = probe.Folder(tmp_path).samples()
    assert len(some_pictures(samples)[0]) == 5  # 20 000 // 3 600
    monkeypatch.setattr(probe, "PIXELS", 1)
    assert len(some_pictures(samples)[0]) == 4


def test_damaged_pictures_are_passed_over(tmp_path):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "fine.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert probe.probe(tmp_path).pictures == 2
    (tmp_path / "fine.png").unlink()
    with pytest.raises(Unreadable, match=r"none of 1 picture .*broken\.png"):
        probe.probe(tmp_path)


@pytest.mark.parametrize(
    ("file", "place", "env"),
    [
        ("a.pt", "ours/weights/a.pt", {}),
        ("org/name", "ours/weights/org--name.safetensors", {}),
        ("a.pt", "home/.cache/clip/a.pt", {}),
        ("a.pt", "torch/hub/checkpoints/a.pt", {"TORCH_HOME": "torch"}),
        ("org/name", "hf/hub/models--org--name/snapshots/1a2b/open_clip_model.safetensors", {"HF_HOME": "hf"}),
        ("org/name", "hub/models--org--name/snapshots/1a2b/model.bin", {"HF_HUB_CACHE": "hub"}),
    ],
)
def test_weights_are_found_where_they_are_kept(file, place, env, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    env = {key: str(tmp_path / value) for key, value in env.items()}
    assert not on_disk(file, env)
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(b"x")
    assert on_disk(file, env)


def test_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "here.pt").write_bytes(b"x")
    weights = (Weights("here", ("there.pt", "here.pt"), "", "", True), Weights("gone", ("gone.pt",), "", "", True))
    monkeypatch.setattr(probe.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(probe, "find_spec", lambda name: name != "httpx")
    known = probe.machine([dataclasses.replace(CARDS["winclip"], weights=weights)])
    assert known == {"gpu": "both", "weights": ("here",), "extras": ("torch", "clip", "diffusion")}
