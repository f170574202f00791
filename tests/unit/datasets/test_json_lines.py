"""Lists of anything: what a line becomes, which references belong to whom, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import anomalens as al
from anomalens.datasets import open_folder
from anomalens.datasets.json_lines import JsonLines, read_cloud, read_numbers
from anomalens.errors import Unreadable, WrongInput
from anomalens.reasoning.endpoint import Callable_
from anomalens.reasoning.pictures import KINDS, kind_of
from tests.unit.datasets.trees import mask, picture

VERDICT = '{"reasoning": "fine", "anomalous": false, "confidence": 90, "defects": []}'


def write(root: Path, *lines: dict | str) -> Path:
    path = root / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("good/0", "good/1", "new/0", "new/1", "clip/2", "clip/10", "clip/1", "lit/a", "lit/b"):
        picture(tmp_path / f"{name}.png")
    mask(tmp_path / "mask.png")
    np.save(tmp_path / "cloud.npy", np.arange(20 * 24 * 3, dtype=np.float32).reshape(20, 24, 3))
    (tmp_path / "points.xyz").write_text("0 0 1 255\n1 0 1 255\n0 1 1 255\n")
    (tmp_path / "curve.csv").write_text("speed,load\n1,2\n3,\n5,6\n")
    return tmp_path


def test_every_modality_becomes_its_views(root):
    path = write(
        root,
        {"id": "e", "paths": "new/0.png"},
        {"id": "d", "modality": "lights", "paths": "lit"},
        {"id": "c", "modality": "point_cloud", "paths": ["cloud.npy", "new/0.png"], "label": 1, "mask": "mask.png"},
        {"id": "b", "modality": "video", "paths": ["clip"]},
        {"id": "a", "modality": "series", "paths": ["curve.csv"], "label": False},
    )
    data = open_folder(path)
    samples = {s.id: s for s in data.samples()}
    assert list(samples) == ["a", "b", "c", "d", "e"]
    assert [kind_of(s) for s in samples.values()] == ["series", "video", "points", "lights", "image"]
    assert set(KINDS) == {kind_of(s) for s in samples.values()}
    assert np.array_equal(samples["a"].image("series"), [[1, 2], [3, np.nan], [5, 6]], equal_nan=True)
    assert [v.path.rpartition("/")[2] for v in samples["b"].views.values()] == ["1.png", "2.png", "10.png"]
    assert samples["c"].image("points").shape == (*samples["c"].mask.read().shape, 3) == (20, 24, 3)
    assert samples["c"].image().shape == (20, 24, 3)
    lit = samples["d"]
    assert np.array_equal(lit.image(), np.rint(lit.image("light_0") / 2.0 + lit.image("light_1") / 2.0))
    assert [(s.label, s.defect) for s in samples.values()] == [
        (0, "good"), (None, ""), (1, "anomalous"), (None, ""), (None, ""),
    ]  # fmt: skip
    assert data.train() == []
    assert "1 x image, 1 x lights, 1 x points, 1 x series, 1 x video to judge; 0 normal references" in data.describe()
    assert [s.id for s in al.samples(path)] == list(samples)


def test_references_are_learnt_from_and_never_tested(root):
    path = write(
        root,
        {"id": "a", "paths": ["new/0.png"], "references": ["good/1.png", "good/0.png"]},
        {"id": "b", "paths": ["good/../good/1.png"]},  # is a reference of the other
    )
    data = JsonLines(path)
    with pytest.warns(UserWarning, match="lists b as a sample and as a reference"):
        assert [s.id for s in data.test()] == ["a"]
    assert "left out as references themselves: b" in data.describe()
    assert [s.id for s in data.train()] == ["references/000-1.png", "references/001-0.png"]  # as they are listed
    with pytest.raises(WrongInput, match="lists only references"), pytest.warns(UserWarning, match="as a reference"):
        JsonLines(write(root, {"id": "a", "paths": ["good/1.png"], "references": ["good/1.png"]})).test()


def test_each_sample_is_compared_with_its_own_references(root):
    both = [{"paths": "good/1.png", "label": "abnormal", "note": "worn"}, "good/0.png"]
    path = write(
        root,
        {"id": "a", "paths": ["new/0.png"], "references": ["good/0.png"], "category": "nut"},
        {"id": "b", "paths": ["new/1.png"], "references": both, "category": "nut"},
        {"id": "c", "paths": ["lit/a.png"], "references": "good/1.png", "category": "bolt"},
        {"id": "d", "paths": ["lit/b.png"], "category": "bolt"},  # as others of its category
        {"id": "e", "modality": "series", "paths": "curve.csv", "category": "motor"},
    )
    data = JsonLines(path)
    assert data.categories == ("bolt", "motor", "nut")
    assert [s.category for s in data.test()] == ["nut/1", "nut/2", "bolt", "bolt", "motor"]
    assert [s.id for s in JsonLines(path, "nut").test()] == ["a", "b"]
    assert [(s.id, s.label, s.defect) for s in data.defective()] == [("nut/2/references/000-1.png", 1, "worn")]
    asked = []
    detector = al.create("vlm", model=Callable_(lambda m: asked.append(m) or VERDICT), abnormal=1, concurrency=1)
    detector.fit([*data.train(), *data.defective()])
    with pytest.warns(UserWarning, match="'motor' are judged without references"):
        assert [p.id for p in detector.predict(data.test())] == ["a", "b", "c", "d", "e"]
    assert [str(m).count("normal:") for m in asked] == [1, 1, 1, 1, 0]
    assert [str(m).count("abnormal (worn):") for m in asked] == [0, 1, 0, 0, 0]
    assert all("called: nut." in str(m) for m in asked[:2])
    with pytest.raises(WrongInput, match="c lists no references, and others like it"):
        JsonLines(
            write(
                root,
                {"id": "a", "paths": "new/0.png", "references": "good/0.png"},
                {"id": "b", "paths": "new/1.png", "references": "good/1.png"},
                {"id": "c", "paths": "lit/a.png"},
            )
        ).test()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "items.jsonl, line 2 is no JSON object"),
        ("[1]", "is no JSON object"),
        ({"paths": "new/0.png"}, "has the id None"),
        ({"id": "../x", "paths": "new/0.png"}, "has the id '../x'; give a name"),
        ({"id": "/x", "paths": "new/0.png"}, "has the id '/x'"),
        ({"id": "first", "paths": "new/0.png"}, "has the id 'first' twice"),
        ({"id": "x", "path": "new/0.png"}, "has the key 'path'; did you mean 'paths'?"),
        ({"id": "x", "paths": "new/0.png", "refrences": []}, "did you mean 'references'?"),
        ({"id": "x", "modality": "smell", "paths": "new/0.png"}, "has the modality 'smell'; give image, lights"),
        ({"id": "x", "paths": []}, "gives [] where paths were expected"),
        ({"id": "x", "paths": "new/9.png"}, "names new/9.png, which does not exist; paths are relative to"),
        ({"id": "x", "paths": ["new/0.png", "new/1.png"]}, "for image; one file was expected"),
        ({"id": "x", "paths": "new"}, "for image; one file was expected"),
        ({"id": "x", "modality": "video", "paths": "new/0.png"}, "fewer than 2 pictures for video"),
        ({"id": "x", "paths": "new/0.png", "label": "bad?"}, "has the label 'bad?'; give 1 for anomalous"),
        ({"id": "x", "paths": "new/0.png", "label": 0, "defect": "tear"}, "contradict each other"),
        ({"id": "x", "modality": "series", "paths": "curve.csv", "mask": "mask.png"}, "has a mask, which samples of"),
        (
            {"id": "x", "paths": "new/0.png", "references": [{"paths": "good/0.png", "label": 3}]},
            "has a reference with",
        ),
    ],
)
def test_a_line_without_sense_is_one_sentence(root, line, sentence):
    path = write(root, {"id": "first", "paths": "new/1.png"}, line)
    with pytest.raises(WrongInput, match=re.escape(sentence)):
        JsonLines(path).test()


def test_files_that_hold_no_numbers_are_unreadable(root):
    assert np.array_equal(read_cloud(root / "points.xyz"), [[0, 0, 1], [1, 0, 1], [0, 1, 1]])
    (root / "words.csv").write_text("a,b\n1,two\n")
    (root / "none.txt").write_text("\n")
    (root / "ragged.csv").write_text("1,2\n3\n")
    np.save(root / "flat.npy", np.zeros(9))
    np.save(root / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (root / "cut.npy").write_bytes((root / "cloud.npy").read_bytes()[:200])
    for name in ("words.csv", "none.txt", "ragged.csv", "object.npy", "cut.npy", "mask.png", "lost.npy"):
        with pytest.raises(Unreadable, match=name):
            read_numbers(root / name)
    with pytest.raises(Unreadable, match=r"flat.npy holds \(9,\); points"):
        read_cloud(root / "flat.npy")


def test_the_only_list_of_a_folder(root):
    write(root, {"id": "a", "paths": "new/0.png"})
    assert [s.id for s in JsonLines(root).test()] == ["a"]
    assert [s.id for s in JsonLines(root, root.name).test()] == ["a"]  # the name that a benchmark gives to no category
    with pytest.raises(WrongInput, match=r"no category of items.jsonl is named 'nut'"):
        JsonLines(root, "nut").test()
    (root / "more.jsonl").write_text("")
    with pytest.raises(WrongInput, match=r"looked for one file \*.jsonl"):
        JsonLines(root).test()
    with pytest.raises(WrongInput, match="holds no line"):
        JsonLines(root / "more.jsonl").test()
