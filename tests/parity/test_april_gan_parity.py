"""APRIL-GAN against the authors' code: every stored tensor, zero-shot and few-shot, losses, gradients and a step.

Configuration, names and tolerances come from golden.json; prefixes of tensor names are the keys of its `runs`.
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from safetensors.torch import load_file  # noqa: E402

from anomalens.backbones.clip import Shape, from_tensors, tokenise  # noqa: E402
from anomalens.detectors.april_gan import AprilGan, class_minmax, losses, sentences  # noqa: E402

FOLDER = Path(os.environ.get("ANOMALENS_PARITY") or Path(__file__).parents[2] / "../shared/parity") / "april_gan"
if not (FOLDER / "golden.json").exists():
    pytest.skip(f"no stored tensors in {FOLDER}; set ANOMALENS_PARITY", allow_module_level=True)
CONFIG = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
STORED = load_file(FOLDER / "golden.safetensors")
RUNS = CONFIG["runs"]
GIVEN = ("clip.*", "*in.*", "adapter.*", "*batch_indices", "*image_indices")  # inputs and weights


def split(name: str) -> tuple[str, str]:
    """(run, key) of a tensor; the run with the longest prefix."""
    run = max((prefix for prefix in RUNS if name.startswith(prefix)), key=len)
    return run, name[len(run) :]


EXPECTED = [n for n in STORED if not any(fnmatchcase(split(n)[1], g) for g in GIVEN)]


def clip_weights() -> dict[str, Any]:
    """OpenAI's names; rows of words that no sentence uses are zeros, positions are the native ones."""
    weights = {n.removeprefix("clip."): t for n, t in STORED.items() if n.startswith("clip.")}
    table = torch.zeros(CONFIG["text"]["vocabulary"], CONFIG["text"]["width"])
    table[weights.pop("token_embedding.used_ids")] = weights.pop("token_embedding.used_rows")
    native = weights.pop("visual.positional_embedding_native", weights["visual.positional_embedding"])
    return {**weights, "token_embedding.weight": table, "visual.positional_embedding": native}


@cache
def detector(run: str) -> AprilGan:
    """With the stored weights and the settings of a run."""
    settings = RUNS[run]
    made = AprilGan(
        image_size=settings["image_size"],
        layers=tuple(settings["output_layers"]),
        few_shot_layers=tuple(settings["few_shot_layers"]),
        activation=settings["activation"],
    )
    heads = {"heads": CONFIG["vision"]["heads"], "text_heads": CONFIG["text"]["heads"]}
    antialias = CONFIG["clip"]["position_antialias"]
    made.use(from_tensors(clip_weights(), heads=heads, activation=settings["activation"], antialias=antialias).eval())
    made.fc = {n.removeprefix("adapter."): t.numpy() for n, t in STORED.items() if n.startswith("adapter.")}
    return made


def stored(run: str, key: str) -> Any:
    """An input of a run; what it does not have of its own is that of the main run."""
    return STORED.get(run + key, STORED.get(key))


@cache
def memory(run: str) -> list[Any]:
    references = [stored(run, f"in.reference.{r}") for r in range(RUNS[run]["references"])]
    return detector(run).bank(torch.cat(references))


@cache
def traced(run: str, image: int) -> dict[str, Any]:
    name = CONFIG["class_names"][CONFIG["image_class"][image]]
    pixels = stored(run, f"in.image.{image}")
    return detector(run).trace(pixels, [detector(run).text(name)], [memory(run)])


@cache
def trained(run: str, batch: int) -> dict[str, Any]:
    """Losses, gradients, maps and, after one step of the published optimiser, the weights."""
    own = detector(run)
    own.__dict__.pop("_linear", None)
    linear = own.linear_layers().requires_grad_(True)
    del own.__dict__["_linear"]  # which the step below moves
    images = STORED[f"{run}train.{batch}.batch_indices"].tolist()
    assert images == RUNS[run]["train"]["batches"][batch]
    pixels = torch.cat([stored(run, f"in.image.{i}") for i in images])
    masks = torch.cat([stored(run, f"in.mask.{i}")[:, 0] for i in images])
    texts = [own.text(CONFIG["class_names"][CONFIG["image_class"][i]]) for i in images]
    maps = own.training_maps(linear, pixels, torch.stack(texts))
    terms = losses(maps, masks, "row" if len(images) == 1 else "image")
    total = sum(terms.values())
    how = CONFIG["optimizer"]
    optimizer = getattr(torch.optim, how["name"])(
        linear.parameters(), lr=how["lr"], betas=tuple(how["betas"]), weight_decay=how["weight_decay"]
    )
    total.backward()
    out = {f"loss.{k}": v for k, v in terms.items()} | {"loss.total": total}
    out |= {f"maps.{i}": m for i, m in enumerate(maps)}
    out |= {f"grad.{k}": p.grad.clone() for k, p in linear.named_parameters()}
    optimizer.step()
    out |= {f"after_step.{k}": p for k, p in linear.named_parameters()}
    return {k: v.detach() for k, v in out.items()}


def text(run: str, key: str) -> Any:
    number, _, what = key.partition(".")
    name = CONFIG["class_names"][int(number)]
    if what == "T":
        return detector(run).text(name)
    group, _, what = what.partition(".")
    spoken = dict(zip(("normal", "abnormal"), sentences(name), strict=True))[group]
    if what == "token_ids":
        return tokenise(spoken, CONFIG["text"]["context"])[:, : STORED[f"{run}text.{key}"].shape[1]]
    with torch.no_grad():
        return {"sentence_features": detector(run).encode(spoken)}[what]


def few_shot_scores(run: str, case: str) -> Any:
    """Scores of the pictures of one class, which are normalised over exactly these."""
    about = CONFIG["class_scores"][case]
    images = STORED[f"{run}{case}.image_indices"].tolist()
    assert images == about["images"]
    stages = [traced(run, i) for i in images]
    zero_shot = [float(s["score_zero_shot"]) for s in stages]
    peaks = [float(s["map_few_shot_total"].max()) for s in stages]
    return torch.tensor(class_minmax(zero_shot, peaks, [case] * len(images)))


def ours(run: str, key: str) -> Any:
    """What we compute in place of a stored tensor; KeyError where we have nothing of this name."""
    kind, _, rest = key.partition(".")
    if kind == "text":
        return text(run, rest)
    if kind == "memory":
        return memory(run)[int(rest)]
    if kind in ("pred", "train"):
        number, _, stage = rest.partition(".")
        return {"pred": traced, "train": trained}[kind](run, int(number))[stage]
    if rest == "score_few_shot":
        return few_shot_scores(run, kind)
    raise KeyError(key)


def rule(key: str, rules: str) -> float | None:
    """The tolerance that speaks of this tensor; the longest pattern counts."""
    found = [pattern for pattern in CONFIG[rules] if fnmatchcase(key, pattern)]
    return CONFIG[rules][max(found, key=len)] if found else None


@pytest.mark.parametrize("name", EXPECTED)
def test_stored_tensor_is_reproduced(name):
    run, key = split(name)
    got, wanted = ours(run, key).double().numpy(), STORED[name].double().numpy()
    assert got.shape == wanted.shape
    compared = False
    if (allowed := rule(key, "tolerances")) is not None:
        away = np.abs(got - wanted)
        if ".after_step." in key:  # Adam divides by the gradient: where that is only rounding, so is the step
            gradient = STORED[name.replace(".after_step.", ".grad.")].abs().numpy()
            away = away[gradient > CONFIG["after_step_gradient_floor"]]
        assert away.max(initial=0) <= allowed
        compared = True
    if (allowed := rule(key, "tolerances_relative")) is not None:
        assert np.abs(got - wanted).max() <= allowed * np.abs(wanted).max()
        compared = True
    if (allowed := rule(key, "tolerances_normalised")) is not None:
        a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (got, wanted))
        assert np.abs(a - b).max() <= allowed
        compared = True
    if not compared:
        assert STORED[name].dtype == torch.int64, f"golden.json has no tolerance for {name}"
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("run", RUNS)
def test_positions_are_resized_as_the_authors_do(run):
    settings = RUNS[run]
    resized = detector(run).clip().positions(settings["grid"], settings["grid"])
    native = "_native" if not settings["resized_positions"] else ""
    used = STORED[f"clip.visual.positional_embedding{native}"]
    assert float((resized - used).abs().max()) <= CONFIG["tolerances"]["clip.visual.positional_embedding"]


def test_every_input_is_used_and_the_settings_are_those_stored():
    shape: Shape = detector(next(iter(RUNS))).clip().shape
    vision = CONFIG["vision"]
    assert (shape.width, shape.layers, shape.patch, shape.size) == tuple(
        vision[k] for k in ("width", "layers", "patch", "native_size")
    )
    given = [len(group) for group in sentences(CONFIG["class_names"][0])]
    assert given == [CONFIG["sentences"]["normal"], CONFIG["sentences"]["abnormal"]]


@pytest.mark.parametrize("run", RUNS)
def test_the_activation_that_auto_takes(run):
    """The authors' builder switches it by the size; golden.json says to what."""
    settings = RUNS[run]
    chosen = "quick_gelu" if settings["image_size"] == CONFIG["vision"]["native_size"] else "gelu"
    assert chosen == settings["activation"]


@pytest.mark.parametrize("name", [n for n in EXPECTED if STORED[n].is_floating_point()])
def test_a_wrong_tensor_would_be_noticed(name, monkeypatch):
    run, key = split(name)
    right = ours(run, key)
    monkeypatch.setitem(globals(), "ours", lambda *_: right * 1.5 + 0.5)
    with pytest.raises(AssertionError):
        test_stored_tensor_is_reproduced(name)


def test_number_of_stored_images_is_covered():
    for run, settings in RUNS.items():
        for image in settings["pred_images"]:
            stages = {k.removeprefix(f"{run}pred.{image}.") for k in EXPECTED if k.startswith(f"{run}pred.{image}.")}
            assert stages <= set(traced(run, image))
            assert len(stages) >= 4
