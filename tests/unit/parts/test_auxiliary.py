"""Annotated batches against a slow reading of the same pictures; adapter files, good and bad ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from anomalens.errors import MissingWeights, WrongInput  # noqa: E402
from anomalens.parts.auxiliary import (  # noqa: E402
    auxiliary_batches,
    find_adapter,
    read_adapter,
    require_shapes,
    soft_mask,
    two_by_two,
    write_adapter,
)
from anomalens.types import Sample, View  # noqa: E402


def sample(index: int, category: str = "nut", bad: bool = False, masked: bool = True, size=(20, 30)) -> Sample:
    """A picture of one colour that tells its number; a bad one has its left half masked."""
    pixels = np.full((*size, 3), 10 * index + 5, np.uint8)
    mask = np.zeros(size, bool)
    mask[:, : size[1] // 2] = bad
    view = View("mask", lambda: mask) if bad and masked else None
    return Sample(f"{category}/{index}", {"image": View("image", lambda: pixels)}, category, int(bad), view)


SAMPLES = [sample(i, bad=i % 2 == 1) for i in range(6)]


def test_every_sample_comes_once_and_goes_with_its_mask_and_label():
    source = auxiliary_batches(SAMPLES, 16, 4, seed=3)
    assert len(source) == 2
    seen = []
    for images, masks, labels, names, has_mask in source(0):
        assert images.shape[1:] == (3, 16, 16)
        assert images.dtype == masks.dtype == labels.dtype == np.float32
        for image, mask, label, name, known in zip(images, masks, labels, names, has_mask, strict=True):
            index = round((float(image[0, 0, 0]) * 255 - 5) / 10)
            assert (label, name, known) == (index % 2, "nut", True)
            assert np.array_equal(mask[:, :7], np.full((16, 7), label))
            assert not mask[:, 9:].any()
            seen.append(index)
    assert sorted(seen) == list(range(6))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[float]:
        return [float(b[0][0, 0, 0, 0]) for b in auxiliary_batches(SAMPLES, 8, seed=seed)(epoch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_batch_can_be_found_again():
    source = auxiliary_batches(SAMPLES, 8, 2, mosaic=0.5)
    whole, late = list(source(4)), list(source(4, start=2))
    assert np.array_equal(whole[2][0], late[0][0])


def test_pictures_are_resized_by_the_bicubic_filter():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 57, 3)).astype(np.uint8)
    one = Sample("a", {"image": View("image", lambda: pixels)}, label=0)
    ((images, *_),) = auxiliary_batches([one], 24)(0)
    wanted = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)) / 255
    assert np.allclose(images[0], np.moveaxis(wanted, 2, 0), atol=1e-6)


def test_deep_pictures_do_not_overflow_where_bicubic_overshoots():
    pixels = np.zeros((9, 9, 3), np.uint16)
    pixels[:, 4:] = 65535
    one = Sample("a", {"image": View("image", lambda: pixels)}, label=0)
    ((images, *_),) = auxiliary_batches([one], 36)(0)
    assert images.min() == 0
    assert images.max() == 1
    assert images[0, 0, 0, :8].max() < 0.1  # no wrap-around on the dark side


def test_a_mosaic_shows_four_pictures_of_one_category_and_their_masks():
    four = [sample(0), sample(1, bad=True), sample(2, size=(10, 10), bad=True), sample(3)]
    picture, mask = two_by_two(four)
    assert picture.shape == (40, 60, 3)
    corners = [picture[0, 0, 0], picture[0, -1, 0], picture[-1, 0, 0], picture[-1, -1, 0]]
    assert corners == [5, 15, 25, 35]
    assert not mask[:20, :30].any()
    assert mask[:20, 30:45].all()
    assert not mask[:20, 45:].any()
    assert mask[20:, :15].all()
    assert not mask[20:, 30:].any()


def test_mosaics_come_as_often_as_asked_and_only_where_asked():
    samples = [sample(i, bad=i == 0) for i in range(5)] + [sample(i, "bolt") for i in range(5)]
    pictures: dict[str, list[np.ndarray]] = {"nut": [], "bolt": []}
    labels: list[float] = []
    for epoch in range(20):
        for images, _, label, names, _ in auxiliary_batches(samples, 8, mosaic={"nut": 1.0})(epoch):
            pictures[names[0]].append(images[0])
            labels += label.tolist() if names[0] == "nut" else []
    assert all(np.ptp(p) > 0.01 for p in pictures["nut"])
    assert all(np.ptp(p) < 0.01 for p in pictures["bolt"])
    assert 0.65 < np.mean(labels) < 0.95  # four of five pictures: anomalous in four of five mosaics
    kept = [
        (float(b[0].std()) > 0, float(b[2][0])) for b in auxiliary_batches(samples[:5], 8, mosaic=1.0, relabel=False)(0)
    ]
    assert sum(label for _, label in kept) == 1  # the label of the picture that each replaces
    assert all(is_mosaic for is_mosaic, _ in kept)


def test_unknown_places_are_said_to_be_unknown():
    samples = [sample(0, bad=True, masked=False), sample(1), sample(2, bad=True)]
    known = {int(b[2][0] + 2 * b[4][0]): b[1].any() for b in auxiliary_batches(samples, 8)(0)}
    assert known == {1: False, 2: False, 3: True}  # label + 2 * has_mask: the mask is there where both are


def test_ignored_pixels_are_not_anomalous():
    mask = np.full((8, 8), 255, np.uint8)
    mask[:4] = 1
    one = replace(sample(1, bad=True, size=(8, 8)), mask=View("mask", lambda: mask))
    ((_, masks, *_),) = auxiliary_batches([one], 8)(0)
    assert np.array_equal(masks[0], mask == 1)


def test_soft_masks_are_shares():
    mask = np.zeros((4, 4), bool)
    mask[:, :2] = True
    assert np.array_equal(soft_mask(mask, (4, 4)), mask.astype(np.float32))
    assert soft_mask(mask, (2, 1))[:, 0] == pytest.approx([0.5, 0.5], abs=2 / 255)


def test_samples_without_label_and_no_samples_are_refused():
    with pytest.raises(WrongInput, match="nut/1 has no label"):
        auxiliary_batches([sample(0), replace(sample(1), label=None)], 8)
    with pytest.raises(WrongInput, match="got none"):
        auxiliary_batches([], 8)


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_adapter_comes_back_with_its_facts(tmp_path):
    tensors = {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(3, dtype=torch.float16)}
    write_adapter(tmp_path / "a.safetensors", tensors, {"epochs": 5, "taps": [1, 2]})
    back, facts = read_adapter(tmp_path / "a.safetensors")
    assert facts == {"epochs": 5, "taps": [1, 2]}
    assert {k: v.dtype for k, v in back.items()} == dict.fromkeys(tensors, torch.float32)
    assert torch.equal(back["a.weight"], tensors["a.weight"])


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"trained": d}])
def test_a_pth_of_tensors_is_read_without_its_prefixes(tmp_path, wrap):
    torch.save(wrap({"module.clip.a": torch.ones(2), "b": torch.zeros(1)}), tmp_path / "a.pth")
    back, facts = read_adapter(tmp_path / "a.pth", ("module.", "clip."))
    assert sorted(back) == ["a", "b"]
    assert facts == {}


class Program:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("it ran",))


def test_files_that_are_programs_or_damaged_or_other_things_are_refused(tmp_path, capsys):
    torch.save({"a": Program()}, tmp_path / "program.pth")
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "mixed.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 20)
    for name in ("program.pth", "mixed.pth", "damaged.safetensors"):
        with pytest.raises(WrongInput, match=name):
            read_adapter(tmp_path / name)
    assert "it ran" not in capsys.readouterr().out


def test_the_first_released_file_is_found_and_checked(tmp_path):
    content = b"weights"
    released = {"one.pth": "0" * 64, "two.pth": hashlib.sha256(content).hexdigest()}
    how = {"folder": tmp_path, "source": "their page", "megabytes": 43}
    with pytest.raises(
        MissingWeights, match=r"one\.pth or two\.pth \(about 43 MB each\) from their page and save it in"
    ):
        find_adapter("", released, **how)
    (tmp_path / "two.pth").write_bytes(content)
    assert find_adapter("", released, **how).name == "two.pth"
    (tmp_path / "one.pth").write_bytes(content)
    with pytest.raises(WrongInput, match=r"one\.pth has the name of a published file but another content"):
        find_adapter("", released, **how)
    (tmp_path / "mine.safetensors").write_bytes(content)
    assert find_adapter(str(tmp_path / "mine.safetensors"), released, **how).name == "mine.safetensors"
    with pytest.raises(MissingWeights, match=r"elsewhere\.pth is not a file"):
        find_adapter("elsewhere.pth", released, **how)


def test_names_and_shapes_must_be_exactly_the_wanted_ones():
    wanted = {"a": (2, 3), "b": (1,)}
    require_shapes({"a": np.ones((2, 3)), "b": np.ones(1)}, wanted, "x.pth")
    for tensors, complaint in (
        ({"a": np.ones((2, 3))}, "b is missing"),
        ({"a": np.ones((3, 2)), "b": np.ones(1)}, r"a is \(3, 2\) instead of \(2, 3\)"),
        ({"a": np.ones((2, 3)), "b": np.ones(1), "c": np.ones(1)}, "c is not known"),
    ):
        with pytest.raises(WrongInput, match=rf"x\.pth.*{complaint}"):
            require_shapes(tensors, wanted, "x.pth")
