"""WinCLIP against the tensors stored from three public rewrites; configuration and tolerances from the JSON beside them.

Stored names are those of `WinCLIP.trace` behind a prefix for run, class and number of references; docs/parity.md has the
table.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file

from anomalens.detectors.winclip import WinCLIP, cover, harmonic

from ._golden import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from anomalens.backbones import clip as clips  # noqa: E402

FOLDER = ROOT / "winclip"
if not (FOLDER / "golden.json").exists():
    pytest.skip(f"no stored tensors in {FOLDER}; set ANOMALENS_PARITY", allow_module_level=True)

CONFIG = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
STORED = load_file(FOLDER / "golden.safetensors")
GIVEN = ("in.*", "clip.*")
EXPECTED = sorted(name for name in STORED if not any(fnmatchcase(name, pattern) for pattern in GIVEN))
TEMPLATES = {21: "anomalib21", 22: "paper22"}
PAPER = {prefix: run for prefix, run in CONFIG["runs"].items() if run["full_image"]}
CAOYUNKANG = {prefix: run for prefix, run in CONFIG["runs"].items() if not run["full_image"]}


@cache
def network():
    """The stored weights; words that no sentence holds have the embedding zero."""
    weights = {k[len("clip.") :]: torch.tensor(v) for k, v in STORED.items() if k.startswith("clip.")}
    used, rows = weights.pop("token_embedding.used_ids"), weights.pop("token_embedding.used_rows")
    weights["token_embedding.weight"] = torch.zeros(CONFIG["text"]["vocabulary"], rows.shape[1])
    weights["token_embedding.weight"][used] = rows
    weights.pop("visual.positional_embedding_native", None)  # those that were used are stored too
    heads = {"heads": CONFIG["vision"]["heads"], "text_heads": CONFIG["text"]["heads"]}
    return clips.from_tensors(weights, heads=heads, activation=CONFIG["clip"]["activation"]).eval()


def detector(run: dict, **settings) -> WinCLIP:
    made = WinCLIP(
        templates=TEMPLATES[run["templates"]], period=run["full_stop"], tau=run["temperature"],
        scales=tuple(run["scales"]), **settings,
    )  # fmt: skip
    made.network = network
    return made


def given(name: str, count: int | None = None):
    return torch.tensor(STORED[f"in.{name}"][:count])


def shortest(ids) -> np.ndarray:
    """Token ids without the columns that are zero in every row."""
    ids = ids.numpy()
    return ids[:, : np.flatnonzero(ids.any(axis=0))[-1] + 1]


def text(prefix: str, stages: dict) -> dict:
    out = {f"{prefix}T": stages["T"], f"{prefix}T_raw": stages["T_raw"]}
    for group in ("normal", "abnormal"):
        out[f"{prefix}text.{group}.token_ids"] = shortest(stages[f"text.{group}.token_ids"])
        out[f"{prefix}text.{group}.sentence_features"] = stages[f"text.{group}.sentence_features"]
    return out


def of_paper(prefix: str, run: dict) -> dict:
    """All that the algorithm of the paper gives under one prefix."""
    out = {}
    size = (run["output_size"],) * 2
    for sub, branch in run["patch_tokens"].items():
        winclip = detector(run, patch_tokens=branch["tokens"], fusion=branch["fusion"])
        for c in run["classes"]:
            name, at = CONFIG["class_names"][c], f"{prefix}class{c}."
            alone = winclip.trace(given("images"), name, size=size)
            out |= text(at, alone)
            out |= {prefix + key: alone[key] for key in alone if key.startswith(("image_emb", "window_emb", "windows"))}
            out |= {at + key: alone[key] for key in alone if key.startswith(("a0", "a_w", "H.", "M0"))}
            out |= {f"{at}zero_shot.map": alone["map"], f"{at}zero_shot.score": alone["score"]}
            out[f"{prefix}patch_tokens.{branch['tokens']}"] = alone["patch_tokens"]
            for k in run["shots"]:
                both = winclip.trace(given("images"), name, given("references", k), size=size)
                shot = f"few_shot.k{k}.{sub}"
                out |= {f"{at}{shot}{branch['map']}": both["map"], f"{at}{shot}score": both["score"]}
                out |= {f"{prefix}{shot}{key}": both[key] for key in both if key.startswith(("d_w", "V"))}
                seen = winclip.embed(given("references", k))
                memory = f"{prefix}few_shot.k{k}.memory."
                out |= {f"{memory}s{s}": seen[f"window_embedding.s{s}"] for s in run["scales"]}
                out[f"{memory}patch.{branch['tokens']}"] = seen["patch_tokens"]
    return out


def of_caoyunkang(prefix: str, run: dict) -> dict:
    out = {}
    winclip = detector(run, variant="caoyunkang")
    size, k = (run["output_size"],) * 2, run["shots"][-1]
    for c in run["classes"]:
        name, at = CONFIG["class_names"][c], f"{prefix}class{c}."
        alone = winclip.trace(given("images"), name, size=size)
        both = winclip.trace(given("images"), name, given("references", k), size=size)
        out |= text(at, alone)
        out |= {f"{at}zero_shot.map": alone["map"], f"{at}few_shot.map": both["map"]}
        out |= {f"{at}textual_map": both["textual_map"][:, None], f"{at}visual_map": both["visual_map"][:, None]}
        for s in run["scales"]:
            rows = both[f"memory.s{s}"]  # stored by window, then by reference
            out[f"{at}gallery.s{s}"] = rows.reshape(k, -1, rows.shape[1]).transpose(0, 1).flatten(0, 1)
    return out


@pytest.fixture(scope="module")
def computed() -> dict:
    out = {}
    for prefix, run in PAPER.items():
        out |= of_paper(prefix, run)
    for prefix, run in CAOYUNKANG.items():
        out |= of_caoyunkang(prefix, run)
    return {key: np.asarray(value) for key, value in out.items()}


def tolerance(name: str, *tables: str) -> float | None:
    """The tightest that speaks of this name."""
    found = [v for table in tables for pattern, v in CONFIG.get(table, {}).items() if fnmatchcase(name, pattern)]
    return min(found) if found else None


def close(name: str, got: np.ndarray, wanted: np.ndarray, allowed: float) -> None:
    assert got.shape == wanted.shape, f"{name} has the shape {got.shape}, stored {wanted.shape}"
    difference = float(np.abs(got.astype(np.float64) - wanted).max())
    assert difference <= allowed, f"{name}: largest difference {difference:.3g}, allowed {allowed}"


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_stored_tensor(name, computed):
    assert name in computed, f"nothing of ours is compared with {name}"
    got, wanted = computed[name], STORED[name]
    if np.issubdtype(wanted.dtype, np.integer):
        assert np.array_equal(got, wanted)
        return
    allowed = tolerance(name, "tolerances", "tolerances_not_in_readme")
    assert allowed is not None, f"the JSON has no tolerance for {name}"
    close(name, got, wanted, allowed)
    if (after := tolerance(name, "tolerances_normalised")) is not None:
        close(name, unit(got), unit(wanted), after)


def from_stored(kind: str) -> list:
    """Names whose tolerance is tighter when the stage before comes from the stored tensors."""
    return [name for name in EXPECTED if tolerance(name, "tolerances_from_stored") is not None and kind in name]


@pytest.mark.parametrize("name", from_stored(".H."))
def test_harmonic_means_from_stored_probabilities(name):
    wanted = STORED[name]
    s = int(name.rpartition(".s")[2])
    got = harmonic(torch.tensor(STORED[name.replace(".H.", ".a_w.")]), cover(*wanted.shape[1:], s))
    close(name, got.numpy().reshape(wanted.shape), wanted, tolerance(name, "tolerances_from_stored"))


@pytest.mark.parametrize("name", from_stored("map"))
def test_maps_of_the_variant_from_stored_embeddings(name):
    prefix = next(p for p in CAOYUNKANG if name.startswith(p))
    run = CAOYUNKANG[prefix]
    winclip = detector(run, variant="caoyunkang")
    of_class = name[len(prefix) :].partition(".")[0]
    seen = {f"window_embedding.s{s}": torch.tensor(STORED[f"window_embedding.s{s}"]) for s in run["scales"]}
    memory = None
    if "zero_shot" not in name:  # the gallery is stored once, with one of the classes
        galleries = {
            s: next(k for k in EXPECTED if k.startswith(prefix) and k.endswith(f"gallery.s{s}")) for s in run["scales"]
        }
        memory = {f"s{s}": torch.tensor(STORED[key]) for s, key in galleries.items()}
    size, out_size = tuple(STORED["in.images"].shape[2:]), (run["output_size"],) * 2
    stages = winclip.judge(seen, torch.tensor(STORED[f"{prefix}{of_class}.T"]), memory, size, out_size)
    key = name.rpartition(".")[2]
    got = stages[key][:, None] if key in ("textual_map", "visual_map") else stages[key]
    close(name, got.numpy(), STORED[name], tolerance(name, "tolerances_from_stored"))


def test_the_windows_differ():
    """Where the masking is applied to the wrong axis every window sees the same."""
    prefix, run = next(iter(PAPER.items()))
    seen = detector(run).embed(given("images", 1))
    for s in run["scales"]:
        rows = unit(seen[f"window_embedding.s{s}"][0].numpy())
        alike = rows @ rows.T
        assert alike[~np.eye(len(rows), dtype=bool)].max() < 1 - 1e-4, prefix
