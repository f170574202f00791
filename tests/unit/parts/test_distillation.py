"""The student of reverse distillation: its form, its losses and its maps against slow, obvious computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from anomalens.errors import WrongInput
from anomalens.parts import distillation
from anomalens.parts.distillation import Plan, plan_for
from anomalens.parts.train import parameters_of, seeded

torch = pytest.importorskip("torch")

PLANS = {
    "basic": Plan((8, 16, 32)),
    "bottleneck": Plan((16, 32, 64), (3, 4, 6), 3, 4, 2),
    "signed": Plan((5, 7, 12), signed=True),
}


def maps(plan: Plan, side: int = 64, batch: int = 2, seed: int = 0) -> list:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.rand(batch, c, side // s, side // s, generator=rng)
        for c, s in zip(plan.channels, distillation.STRIDES, strict=True)
    ]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("side", [64, 96])
def test_the_student_mirrors_the_teacher(name, side):
    plan = PLANS[name]
    student, features = distillation.new_student(plan), maps(plan, side)
    together, code = distillation.embed(student, features)
    assert [tuple(t.shape[1:]) for t in together] == [(plan.channels[2], side // 16, side // 16)] * 3
    assert code.shape == (2, 2 * plan.channels[2], side // 32, side // 32)
    rebuilt = distillation.rebuild(student, features)
    assert [r.shape for r in rebuilt] == [f.shape for f in features]


@pytest.mark.parametrize(
    ("name", "millions"), [("timm:resnet18", 15.4), ("timm:wide_resnet50_2.tv_in1k@some.file", 83.8)]
)
def test_sizes_are_those_of_the_published_students(name, millions):
    channels = (64, 128, 256) if "resnet18" in name else (256, 512, 1024)
    with torch.device("meta"):
        student = distillation.new_student(plan_for(name, channels))
    assert sum(p.numel() for p in student.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_plan_follows_the_name():
    assert plan_for("timm:wide_resnet50_2.tv_in1k?pad_type=same@w.safetensors", (256, 512, 1024)).widen == 2
    assert plan_for("timm:resnet34", (64, 128, 256)).blocks == (3, 4, 6)
    assert plan_for("tiny", (32, 64, 128)) == Plan((32, 64, 128), signed=True)
    assert plan_for("timm:mobilenetv2_100", (24, 32, 96)) == Plan((24, 32, 96), signed=True)


def test_weights_start_as_published():
    with seeded(0):
        student = distillation.new_student(Plan((32, 64, 128)))
    conv = student["oce"]["from2"][0].weight
    assert float(conv.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)  # Kaiming normal, fan out
    transposed = student["decoder"]["stage1"][0].body[0]
    assert isinstance(transposed, torch.nn.ConvTranspose2d)
    bound = 1 / (32 * 4) ** 0.5  # torch's own: uniform, fan in of a transposed convolution is its output channels
    assert float(transposed.weight.detach().abs().max()) == pytest.approx(bound, rel=0.05)
    with seeded(0):
        again = distillation.new_student(Plan((32, 64, 128)))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(parameters_of(student).values(), parameters_of(again).values(), strict=True)
    )


@pytest.mark.parametrize("signed", [True, False])
def test_only_a_signed_student_reaches_negative_values(signed):
    plan = Plan((8, 16, 32), signed=signed)
    lowest = [float(g.detach().min()) for g in distillation.rebuild(distillation.new_student(plan), maps(plan))]
    assert (max(lowest) < 0) == signed


def test_nothing_but_the_code_reaches_the_decoder():
    plan = PLANS["basic"]
    student, features = distillation.new_student(plan).eval(), maps(plan)
    code = distillation.embed(student, features)[1]
    for a, b in zip(distillation.decode(student, code), distillation.rebuild(student, features), strict=True):
        assert torch.equal(a, b)


def test_losses_are_of_whole_maps():
    a, b = maps(PLANS["basic"], seed=1), maps(PLANS["basic"], seed=2)
    for got, x, y in zip(distillation.losses(a, b), a, b, strict=True):
        rows = [(p.numpy().ravel(), q.numpy().ravel()) for p, q in zip(x, y, strict=True)]
        expected = np.mean([1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in rows])
        assert float(got) == pytest.approx(expected, rel=1e-4)
    assert max(float(x) for x in distillation.losses(a, [3 * x for x in a])) < 1e-6


@pytest.mark.parametrize("align", [True, False])
def test_maps_against_a_slow_computation(align):
    a, b = (
        [x.double() for x in maps(PLANS["basic"], seed=1)],
        [x.double() for x in maps(PLANS["basic"], seed=2)],
    )
    expected = np.zeros((2, 64, 64))
    for x, y in zip(a, b, strict=True):
        n = x.shape[2]
        for picture in range(2):
            grid = np.array(
                [[1 - float(torch.cosine_similarity(x[picture, :, r, c], y[picture, :, r, c], dim=0)) for c in range(n)]
                 for r in range(n)]
            )  # fmt: skip
            place = np.arange(64) * (n - 1) / 63 if align else np.clip((np.arange(64) + 0.5) * n / 64 - 0.5, 0, n - 1)
            rows = np.stack([np.interp(place, np.arange(n), grid[:, c]) for c in range(n)], axis=1)
            expected[picture] += np.stack([np.interp(place, np.arange(n), row) for row in rows])
    expected = np.stack([gaussian_filter(m, 4) for m in expected])
    got = distillation.anomaly_maps(a, b, 64, 4.0, align)
    assert np.allclose(got.numpy(), expected, atol=1e-9)


def test_a_teacher_is_asked_once_where_its_maps_fit():
    class Teacher:
        device = "cpu"
        asked = 0

        def __call__(self, images):
            self.asked += len(images)
            return [images[:, :1, ::s, ::s] for s in distillation.STRIDES]

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (3, 64, 64, 3), np.uint8) for _ in range(5)]  # three lights each
    seen = {}
    for keep in (0, 10**9):
        teacher = Teacher()
        shown, maps_of = distillation.lessons(teacher, pictures, batch=2, seed=0, keep=keep, device=torch.device("cpu"))
        seen[keep] = [maps_of(batch) for epoch in range(2) for batch in shown(epoch)]
        assert teacher.asked == (3 * 5 if keep else 3 * 5 * 2 + 3)  # one sample more to learn how large its maps are
    for once, anew in zip(seen[10**9], seen[0], strict=True):
        assert [tuple(m.shape[1:]) for m in once] == [(3, 1, 16, 16), (3, 1, 8, 8), (3, 1, 4, 4)]
        assert all(torch.equal(a, b) for a, b in zip(once, anew, strict=True))


def test_training_data_have_a_name():
    a, b = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)
    names = {distillation.named(*args) for args in (([a, b], 1), ([b, a], 1), ([a, b], 2), ([a], 1))}
    assert len(names) == 4
    assert distillation.named([a, b], 1) in names


@pytest.mark.parametrize("side", [32, 100, 0])
def test_a_size_that_cannot_be_halved_is_refused(side):
    with pytest.raises(WrongInput, match="multiple of 32"):
        distillation.check_sizes("RD", side, 16)
