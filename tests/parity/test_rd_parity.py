"""RD against the authors' code: every stored stage, loss, gradient and trained parameter, in both precisions."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from anomalens.backbones import get
from anomalens.parts import distillation
from anomalens.parts.grids import to_numpy
from anomalens.parts.train import Group, load_parameters, parameters_of, train

from ._golden import load, mismatch
from ._students import excuse, our_name, ours, plan_of, recipe_of, relus, rule_in_training, set_batch_norm

torch = pytest.importorskip("torch")

GOLDEN = load("rd")
STAGES = [name for name in GOLDEN.expected if GOLDEN.cases[GOLDEN.split(name)[0]]["kind"] == "student"]
MAPS = [name for name in GOLDEN.expected if GOLDEN.cases[GOLDEN.split(name)[0]]["kind"] == "teacher"]


def features(case: str, precision: str) -> list[Any]:
    return [torch.from_numpy(GOLDEN.tensor(case, "", f"f{i}").astype(precision)) for i in (1, 2, 3)]


def student(case: str, precision: str) -> Any:
    config = GOLDEN.cases[case]
    made = distillation.new_student(plan_of(config))
    set_batch_norm(made, config)
    load_parameters(made, ours(GOLDEN.tensors, f"{case}.weights."))
    return made.to(getattr(torch, precision)).requires_grad_(True)


def loss(made: Any, f: list[Any]) -> Any:
    return sum(distillation.losses(f, distillation.rebuild(made, f)))


def stages(made: Any, f: list[Any]) -> dict[str, Any]:
    """Code, rebuilt maps, in the mode the student is in."""
    together, code = distillation.embed(made, f)
    out = {"c1": together[0], "c2": together[1], "cat": torch.cat(together, dim=1), "bottleneck": code}
    return out | {f"g{i}": g for i, g in enumerate(distillation.decode(made, code), 1)}


@cache
def judged(case: str, precision: str) -> dict[str, np.ndarray]:
    config = GOLDEN.cases[case]
    made, f = student(case, precision), features(case, precision)
    made.eval()
    out = stages(made, f)
    g = [out[f"g{i}"] for i in (1, 2, 3)]
    out["loss_per_scale"] = torch.stack(distillation.losses(f, g))
    out["loss"] = loss(made, f)
    away = distillation.differences(f, g)
    up = distillation.enlarge(away, config["image_size"], config["align_corners"])
    out |= {f"cosmap{i}": m for i, m in enumerate(away, 1)} | {f"up{i}": m for i, m in enumerate(up, 1)}
    out["map_raw"] = sum(up)
    settings = config["image_size"], config["sigma"], config["align_corners"]
    out["map"] = distillation.anomaly_maps(f, g, *settings)
    out = {k: to_numpy(v) for k, v in out.items()}
    out["score"] = getattr(out["map"], config["image_score"])(axis=(1, 2))
    return out


@cache
def trained(case: str, run: str, precision: str) -> dict[str, np.ndarray]:
    f = features(case, precision)
    settings = GOLDEN.cases[case]["runs"][run]
    made = student(case, precision).train()
    with relus() as lit:
        out = {k: to_numpy(v) for k, v in stages(made, f).items()}
    out["relus"] = np.concatenate(lit)

    made = student(case, precision).train()
    loss(made, f).backward()
    out |= {f"grad.{k}": p.grad.numpy() for k, p in made.named_parameters()}

    groups = settings["optimizer"]
    for steps in range(1, settings["steps"] + 1):
        seen: list[float] = []
        made = student(case, precision)

        def watched(batch: Any, made: Any = made, seen: list[float] = seen) -> Any:
            value = loss(made, batch)
            seen.append(float(value.detach()))
            return value

        parts = [Group(made[part], lr=groups[part]["lr"]) for part in groups]
        train(watched, parts, lambda epoch: [f], recipe_of(groups["oce"], steps))
        out["loss"] = np.array(seen)
        out |= {f"after{steps}.{k}": v for k, v in parameters_of(made).items()}
    return out


@pytest.mark.parametrize("precision", list(GOLDEN.config["tolerances"]))
@pytest.mark.parametrize("name", STAGES)
def test_stage_equals_the_authors(name, precision):
    case, run, key = GOLDEN.split(name)
    training = GOLDEN.cases[case]["runs"][run]["batch_norm_mode"] == "train"
    kind, dot, theirs = key.partition(".")
    got = (trained(case, run, precision) if training else judged(case, precision))[
        kind + dot + (theirs and our_name(theirs))
    ]
    rule = GOLDEN.rule(name, precision)
    complaint = mismatch(got, GOLDEN.tensors[name], rule_in_training(rule, key, precision) if training else rule)
    if complaint and training and precision == "float32":
        why = excuse(key, *(trained(case, run, p) for p in ("float32", "float64")))
        if why:
            pytest.skip(f"{name} in float32: {why}; {complaint}")
    assert not complaint, f"{name} in {precision}: {complaint}"


@pytest.mark.parametrize("precision", list(GOLDEN.config["tolerances"]))
@pytest.mark.parametrize("name", MAPS)
def test_the_teacher_is_the_authors(name, precision, shared):
    pytest.importorskip("timm")
    case, _, key = GOLDEN.split(name)
    config = GOLDEN.cases[case]
    strides = tuple(config["image_size"] // grid for grid in config["grids"])
    weights = shared / "weights" / config["weights"]
    image = GOLDEN.tensor(case, "", "image")  # normalised already
    maps = get(f"timm:{config['backbone']}?mean=0&std=1@{weights}", strides=strides, device="cpu", engine="torch")(
        image
    )
    GOLDEN.check(name, to_numpy(maps[int(key[1:]) - 1]), precision)


@pytest.mark.parametrize("name", STAGES)
def test_a_wrong_stage_is_noticed(name):
    with pytest.raises(AssertionError):
        GOLDEN.check(name, 2 * GOLDEN.tensors[name] + 1, "float64")
