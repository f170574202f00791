"""Saved folders: complete or absent, and never code."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import anomalens as al
from anomalens import files, store
from anomalens.errors import AnomalensError, CannotWrite, UnknownName, WrongInput


@pytest.fixture(scope="module")
def saved(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "model"
    al.save(al.create("padim", image_size=64, channels=8).fit(good), folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder, change):
    path = folder / "detector.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_folder_names_a_method_and_holds_two_files(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["arrays.safetensors", "detector.json"]
    content = json.loads((saved / "detector.json").read_text())
    assert content["method"] == "padim"
    assert content["format"] == store.FORMAT
    assert content["settings"]["image_size"] == 64


def test_arrays_keep_their_shape_and_values():
    values = {"number": np.array(2.5), "turned": np.arange(6).reshape(2, 3).T, "none": np.zeros((0, 4))}
    arrays: dict[str, np.ndarray] = {}
    back = store._decode(store._encode(values, "key", arrays), arrays)
    assert {k: v.shape for k, v in back.items()} == {"number": (), "turned": (3, 2), "none": (0, 4)}
    assert all(v.flags.c_contiguous for v in arrays.values())
    np.testing.assert_array_equal(back["turned"], values["turned"])


def test_settings_can_be_overridden_on_loading(saved):
    assert al.load(saved, batch_size=3).batch_size == 3
    with pytest.raises(UnknownName):
        al.load(saved, no_such=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=99), "format 99.*fit and save again"),
        (lambda c: c.update(method="os.system"), "no detector is named"),
        (lambda c: c.update(method="../../evil"), "no detector is named"),
        (lambda c: c["settings"].update(no_such=1), "no setting"),
        (lambda c: c["settings"].update(image_size="; rm -rf"), "image_size"),
        (lambda c: c["settings"].update(image_size={"array": "nowhere"}), "does not describe"),
        (lambda c: c["learned"].pop("mean"), "expects"),
        (lambda c: c["learned"].update(__class__=1), "expects"),
        (lambda c: c["learned"].update(mean={"array": "missing"}), "does not describe"),
        (lambda c: c["learned"].update(mean={"python": "os.system('true')"}), "does not describe"),
        (lambda c: c.pop("settings"), "does not describe"),
        (lambda c: c.update(calibration={"scores": 1}), "does not describe"),
    ],
)
def test_hostile_json_is_refused_in_one_sentence(copy, change, words):
    edit(copy, change)
    with pytest.raises(AnomalensError, match=words) as caught:
        al.load(copy)
    assert "\n" not in str(caught.value)


def test_deep_nesting_is_refused(copy):
    (copy / "detector.json").write_text("[" * 100_000)
    with pytest.raises(WrongInput, match="damaged"):
        al.load(copy)


def test_damaged_and_missing_files(copy, tmp_path):
    arrays = copy / "arrays.safetensors"
    whole = arrays.read_bytes()
    for data in (whole[:100], b"", b"\xff" * 64, (2**60).to_bytes(8, "little") + whole[8:]):
        arrays.write_bytes(data)
        with pytest.raises(WrongInput, match="damaged"):
            al.load(copy)
    arrays.unlink()
    with pytest.raises(WrongInput, match=r"arrays\.safetensors is missing"):
        al.load(copy)
    with pytest.raises(WrongInput, match="not a saved detector"):
        al.load(tmp_path)
    (copy / "detector.json").write_bytes(b"\x80\x04pickle")
    with pytest.raises(WrongInput, match="damaged"):
        al.load(copy)


def test_an_array_of_the_wrong_shape_fails_without_running_anything(copy, mixed):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "arrays.safetensors")
    tensors["mean"] = np.zeros((1, 1), np.float32)
    save_file(tensors, copy / "arrays.safetensors")
    with pytest.raises((WrongInput, ValueError)):
        list(al.load(copy).predict(mixed[:1]))


def test_saving_again_replaces_and_leaves_no_litter(saved, tmp_path):
    detector = al.load(saved)
    al.save(detector, tmp_path / "m")
    al.save(detector, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_foreign_folders_are_not_overwritten(saved, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CannotWrite, match="not a saved detector"):
        al.save(al.load(saved), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_save_keeps_the_old_one(saved, tmp_path, monkeypatch):
    detector = al.load(saved)
    al.save(detector, tmp_path / "m")
    before = (tmp_path / "m" / "detector.json").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(CannotWrite, match="no space left"):
        al.save(detector, tmp_path / "m")
    assert (tmp_path / "m" / "detector.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_is_really_full(saved, tmp_path):
    resource = pytest.importorskip("resource", reason="needs a limit on file sizes, which this system has not")
    detector = al.load(saved)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        with pytest.raises(CannotWrite, match=r"cannot be written.*nothing that was there is lost"):
            al.save(detector, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_write_atomic(tmp_path):
    files.write_atomic(tmp_path / "a" / "b.txt", "one")
    files.write_atomic(tmp_path / "a" / "b.txt", b"two")
    assert (tmp_path / "a" / "b.txt").read_text() == "two"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot be written"):
        files.write_atomic(tmp_path / "file" / "below.txt", "x")


def test_wrappers_and_their_inner_detectors_are_saved_whole(good, mixed, tmp_path):
    inner = al.create("padim", image_size=64, channels=8)
    nested = al.create("within", inner=al.create("tiled", inner=inner, tile=96, overlap=16)).fit(good)
    al.save(nested, tmp_path / "m")
    loaded = al.load(tmp_path / "m")
    assert loaded.inner.inner.channels == 8
    for a, b in zip(nested.predict(mixed), loaded.predict(mixed), strict=True):
        assert a.score == b.score
