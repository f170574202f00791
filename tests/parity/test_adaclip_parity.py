"""AdaCLIP against the tensors stored from the authors' code, on a small random CLIP; tolerances from golden.json.

Everything is read from the folder: runs (name prefixes), prompts, towers, pictures, names, labels and the optimiser.

Dynamic prompts are compared first, to 1e-5, and then the stored ones are used: prompts are rounded to float16, where a
last digit of float32 that falls on the other side is a step of 2^-11, twice what the blocks are allowed to differ.
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from safetensors.numpy import load_file  # noqa: E402

from anomalens.backbones.clip import CARD, from_tensors, tokenise  # noqa: E402
from anomalens.detectors.adaclip import MIX, SCALE, AdaCLIP, Network, layout_of, losses, sentences  # noqa: E402
from anomalens.images import resize, to_float  # noqa: E402
from anomalens.parts.auxiliary import soft_mask  # noqa: E402
from anomalens.parts.train import Recipe, train  # noqa: E402

FOLDER = Path(os.environ.get("ANOMALENS_PARITY") or Path(__file__).parents[2] / "../shared/parity") / "adaclip"
if not (FOLDER / "golden.json").exists():
    pytest.skip(f"no stored tensors in {FOLDER}; set ANOMALENS_PARITY", allow_module_level=True)

CONFIG = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
STORED = load_file(FOLDER / "golden.safetensors")
RUNS = sorted(CONFIG["runs"], key=len, reverse=True)
GIVEN = ("clip.*", "in.*", "preproc.image_uint8", "preproc.mask_raw", "adapter.*", *CONFIG["inject"])


def split(name: str) -> tuple[str, str]:
    """(run, key) of a stored tensor; the run is its prefix."""
    run = next((run for run in RUNS if name.startswith(run)), "")
    return run, name[len(run) :]


def stored(run: str, key: str) -> np.ndarray:
    """A tensor of a run, or the one that all runs share."""
    return STORED[run + key] if run + key in STORED else STORED[key]


def given(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in GIVEN)


EXPECTED = [name for name in STORED if not given(split(name)[1])]


@pytest.fixture(scope="module")
def clip():
    tensors = {k[len("clip.") :]: torch.from_numpy(v) for k, v in STORED.items() if k.startswith("clip.")}
    rows, ids = tensors.pop("token_embedding.used_rows"), tensors.pop("token_embedding.used_ids")
    table = torch.zeros(CONFIG["text"]["vocabulary"], CONFIG["text"]["width"])
    table[ids] = rows
    tensors["token_embedding.weight"] = table
    used = tensors["visual.positional_embedding"]
    tensors["visual.positional_embedding"] = tensors.pop("visual.positional_embedding_native", used)
    how = CONFIG["clip"]
    heads = {"heads": CONFIG["vision"]["heads"], "text_heads": CONFIG["text"]["heads"]}
    made = from_tensors(tensors, heads=heads, activation=how["activation"], antialias=how["position_antialias"]).eval()
    grid = CONFIG["vision"]["grid"]
    assert torch.allclose(made.positions(grid, grid), used, atol=1e-6)
    return made


def detector_of(run: str, clip: Any) -> AdaCLIP:
    config = CONFIG["runs"][run]
    assert (CONFIG["clip"]["logit_scale"], config["hsf_mix"]) == (SCALE, MIX)
    made = AdaCLIP(
        image_size=CONFIG["vision"]["image_size"], type=config["type"], branch=config["branch"], depth=config["depth"],
        length=config["length"], taps=tuple(config["output_layers"]), fusion=config["hsf"], clusters=config["clusters"],
        prompt_cast=config["prompt_cast"], sigma=CONFIG["smoothing_sigma"], device="cpu",
    )  # fmt: skip
    own = f"{run}adapter.clip_model."
    prefix = own if any(k.startswith(own) for k in STORED) else "adapter.clip_model."
    tensors = {k[len(prefix) :]: v for k, v in STORED.items() if k.startswith(prefix)}
    made.__dict__["_clip"] = clip
    made.weights = {"tensors": tensors, "facts": {"file": "the stored one"}}
    return made


class Prompts:
    """`Network.generate` that remembers what it made and gives the stored value, with the gradient of its own."""

    def __init__(self, network: Network, run: str, index: int):
        self.network, self.run, self.index = network, run, index
        self.made: dict[str, Any] = {}

    def __call__(self, tower: str, g: Any) -> Any:
        name = {"visual": "D_v", "text": "D_t"}[tower]
        own = self.made[name] = type(self.network).generate(self.network, tower, g)
        theirs = STORED.get(f"{self.run}pred.{self.index}.{name}")
        return own if theirs is None else own + (torch.from_numpy(theirs) - own).detach()


def picture(run: str, index: int) -> np.ndarray:
    """(1, 3, S, S) in [0, 1], of the stored normalised one."""
    mean, std = (np.asarray(v, np.float64).reshape(1, 3, 1, 1) for v in (CARD.mean, CARD.std))
    return (stored(run, f"in.image.{index}") * std + mean).astype(np.float32)


def stored_labels(run: str, kind: str, index: int) -> np.ndarray | None:
    return STORED.get(f"{run}{kind}.{index}.hsf.labels")


def predicted(run: str, index: int, clip: Any) -> dict[str, np.ndarray]:
    """Stages of one prediction under the stored names."""
    detector = detector_of(run, clip)
    prompts = detector.network.generate = Prompts(detector.network, run, index)
    out = detector.trace(
        picture(run, index), [CONFIG["class_names"][index]], labels=stored_labels(run, "pred", index), everything=True
    )
    found = {}
    for key, value in {**out, **prompts.made}.items():
        if key.startswith("vision.block"):  # theirs is (N, B, C)
            value = value.transpose(0, 1)
        elif key.startswith("text.block"):
            key, value = key.replace("text.", "text.normal.sentence0."), value[0]
        elif key.startswith("text."):
            value = value[0]
        found[f"pred.{index}.{key}"] = value.detach().numpy()
    return found


def trained(run: str, index: int, clip: Any) -> dict[str, np.ndarray]:
    """Stages, losses, gradients and the adapter after one step under the stored names."""
    config, optimiser = CONFIG["runs"][run], CONFIG["optimizer"]
    detector = detector_of(run, clip)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in detector.weights["tensors"].items()}
    network = Network(clip, tensors, detector.network.layout, detector)
    network.generate = Prompts(network, run, index)
    found: dict[str, np.ndarray] = {}

    def loss(_: Any) -> Any:
        out = network(
            clip.normalise(picture(run, index)), [CONFIG["class_names"][index]],
            labels=stored_labels(run, "train", index), training=True,
        )  # fmt: skip
        masks = torch.from_numpy(stored(run, f"in.mask.{index}"))[:, 0]
        terms = losses(out, masks, torch.from_numpy(stored(run, f"in.label.{index}")))
        total = torch.stack(list(terms.values())).sum()
        found.update({key: out[key].detach().numpy() for key in out if key == "score" or key.startswith("maps.")})
        found.update({f"loss.{key}": value.detach().numpy() for key, value in {**terms, "total": total}.items()})
        return total

    loss(None).backward()
    found |= {f"grad.clip_model.{k}": t.grad.numpy().copy() for k, t in tensors.items() if t.grad is not None}
    for tensor in tensors.values():
        tensor.grad = None
    if index in config["after_step_images"]:
        assert optimiser["name"] == "AdamW"
        recipe = Recipe(
            steps=1, optimiser="adamw", lr=optimiser["lr"], betas=tuple(optimiser["betas"]),
            weight_decay=optimiser["weight_decay"],
        )  # fmt: skip
        train(loss, tensors, lambda epoch: [None], recipe)
        found |= {f"after_step.clip_model.{k}": t.detach().numpy() for k, t in tensors.items()}
    return {f"train.{index}.{key}": value for key, value in found.items()}


@pytest.fixture(scope="module")
def computed(clip) -> dict[str, np.ndarray]:
    """Everything that the folder speaks of, computed here."""
    size = (CONFIG["vision"]["image_size"],) * 2
    how = CONFIG["preprocess"]
    assert (how["image_resize"], how["mask_resize"]) == ("bicubic", "bilinear")
    pixels = np.moveaxis(to_float(resize(STORED["preproc.image_uint8"].astype(np.uint8), size, "bicubic")), 2, 0)
    soft = soft_mask(STORED["preproc.mask_raw"] == 1, size)[None]
    found = {
        "preproc.image_out": clip.normalise(pixels[None])[0].numpy(),
        "preproc.mask_soft": soft,
        "preproc.mask_out": (soft > how["mask_threshold"]).astype(np.float32),
    }
    for run, config in CONFIG["runs"].items():
        for index in config["pred_images"]:
            found |= {run + key: value for key, value in predicted(run, index, clip).items()}
        for index in config["train_images"]:
            found |= {run + key: value for key, value in trained(run, index, clip).items()}
    return found


def tolerance(key: str, table: str) -> float | None:
    limits = [v for pattern, v in CONFIG.get(table, {}).items() if fnmatchcase(key, pattern)]
    return min(limits) if limits else None


@pytest.mark.parametrize("name", EXPECTED)
def test_every_stored_tensor(name, computed):
    run, key = split(name)
    assert name in computed, f"{name} is stored, but nothing here computes it"
    got, wanted = computed[name].astype(np.float64), STORED[name].astype(np.float64)
    assert got.shape == wanted.shape
    away = np.abs(got - wanted)
    relative = tolerance(key, "tolerances_relative")
    if relative is not None:
        assert away.max() <= relative * np.abs(wanted).max(), f"{away.max() / np.abs(wanted).max():.2g} of the largest"
        return
    absolute = tolerance(key, "tolerances")
    absolute = tolerance(key, "tolerances_not_in_readme") if absolute is None else absolute
    assert absolute is not None, f"no tolerance speaks of {name}"
    if ".after_step." in key:  # a first adaptive step is close to a sign
        gradient = STORED.get(run + key.replace("after_step", "grad"))
        if gradient is not None:
            away = away[np.abs(gradient) > CONFIG["after_step_gradient_floor"]]
    assert away.max(initial=0) <= absolute, f"{away.max():.3g} away, {absolute:g} allowed"


def test_tensors_without_gradient_have_none_here(computed):
    for run, config in CONFIG["runs"].items():
        for index in config["train_images"]:
            prefix = f"{run}train.{index}.grad."
            assert {k for k in computed if k.startswith(prefix)} == {k for k in STORED if k.startswith(prefix)}
            assert not {prefix + name for name in config["no_gradient"]} & set(computed)


def test_the_layout_is_read_off_the_shapes(clip):
    for run, config in CONFIG["runs"].items():
        detector = detector_of(run, clip)
        if "S" not in config["type"]:
            continue  # the towers with purely dynamic prompts cannot be told from shapes
        own = detector._layout(clip.shape)
        blank = type(own)("", "", 1, 1, own.taps)
        assert layout_of(detector.weights["tensors"], {}, blank) == own or not config["branch"]


def test_the_sentences_are_theirs():
    for index, name in enumerate(CONFIG["class_names"]):
        ids = tokenise(sentences(name)).numpy()
        normal, abnormal = (STORED[f"in.token_ids.{index}.{group}"] for group in ("normal", "abnormal"))
        assert np.array_equal(ids, np.concatenate([normal, abnormal]))
