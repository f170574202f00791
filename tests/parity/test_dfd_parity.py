"""DFD against the authors' code: synthesis, split, features, both discriminators, losses, gradients, one step, maps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalens.detectors import dfd
from anomalens.parts.frequency import down, split
from anomalens.parts.grids import to_numpy
from anomalens.parts.train import Group, load_parameters, parameters_of, train
from anomalens.synthesis.perlin import THRESHOLD, paste, perlin_noise

from ._golden import load
from ._students import recipe_of

torch = pytest.importorskip("torch")

GOLDEN = load("dfd")
PRECISIONS = list(GOLDEN.config["tolerances"])
OURS = {  # the authors' names of tensors, longest first
    "adaptor.layers.0fc": "adaptor",
    "phi_G.body.block1": "gaussian",
    "phi_G.tail": "gaussian.3",
    "phi_P.mlp": "perlin",
    "phi_P.tail": "perlin.4",
    "phi_P.ViT.cls_token": "perlin.3.token",
    "phi_P.ViT.pos_embed": "perlin.3.positions",
    "phi_P.ViT.blocks.0.attn.qkv.": "perlin.3.block.self_attn.in_proj_",
    "phi_P.ViT.blocks.0.attn.proj": "perlin.3.block.self_attn.out_proj",
    "phi_P.ViT.blocks.0.mlp.fc": "perlin.3.block.linear",
    "phi_P.ViT.blocks.0": "perlin.3.block",
    "phi_P.ViT.norm": "perlin.3.norm",
}
PATHS = {"G": "gaussian", "P": "perlin"}
FEATURES = [name for name in GOLDEN.expected if GOLDEN.split(name)[2].startswith("feat.")]
STREAMS = ("n_l", "n_h", "a_l", "a_h")


def our_name(theirs: str) -> str:
    for start, ours in OURS.items():
        if theirs.startswith(start):
            return ours + theirs.removeprefix(start)
    raise KeyError(theirs)


def given(case: str, key: str, precision: str) -> Any:
    return torch.from_numpy(GOLDEN.tensor(case, "", key).astype(precision))


def networks(case: str, precision: str) -> Any:
    """Our networks with the stored weights, in eval mode."""
    config = GOLDEN.cases[case]
    vit = config["vit"]
    assert (vit["depth"], vit["mlp_ratio"], vit["class_token"]) == (1, 4, True)
    cells = config["grids"][0]
    assert vit["tokens"] == cells**2 + 1
    made = dfd.new_networks(dfd.Form(config["target_dim"], config["phi_G_hidden"], vit["heads"], cells))
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eps, module.momentum = config["batch_norm"]["eps"], config["batch_norm"]["momentum"]
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps == vit["layer_norm_eps"]
        if isinstance(module, torch.nn.LeakyReLU):
            assert module.negative_slope == config["leaky_slope"]
    prefix = f"{case}.weights." if case else "weights."
    stored = {our_name(k.removeprefix(prefix)): v for k, v in GOLDEN.tensors.items() if k.startswith(prefix)}
    return load_parameters(made, stored).to(getattr(torch, precision)).requires_grad_(True)


def feature_maps(case: str, stream: str, precision: str) -> list[Any]:
    return [given(case, f"feat.{stream}.{layer}", precision) for layer in GOLDEN.cases[case]["layers"]]


@cache
def pictures(case: str) -> dict[str, np.ndarray]:
    """The split and the drawn defects; the authors' code does both in single precision."""
    config, out = GOLDEN.cases[case], {}
    for name in config["freq"]:
        image = GOLDEN.tensor(case, "", f"freq.{name}.image")
        out[f"freq.{name}.down"] = down(image, axes=(0, 1))
        out[f"freq.{name}.low"], out[f"freq.{name}.high"] = split(image, axes=(0, 1))
    synthesis = config["synthesis"]
    assert synthesis["perlin_threshold"] == THRESHOLD
    for i in range(synthesis["samples"]):

        def read(key: str, i: int = i) -> np.ndarray:
            return GOLDEN.tensor(case, "", f"synth.{i}.{key}")

        angles, image = read("perlin_angles"), read("image")
        assert [n - 1 for n in angles.shape] == read("perlin_res").tolist()
        noise = perlin_noise(image.shape[:2], angles)
        texture = read("texture") / np.float32(synthesis["texture_scale"])
        made = paste(image, texture, noise, float(read("beta")), read("foreground"))
        if read("normal_draw") > synthesis["no_anomaly_above"]:
            made = type(made)(image, np.zeros_like(made.mask))
        out[f"synth.{i}.perlin"], out[f"synth.{i}.augmented"] = noise, made.image
        out[f"synth.{i}.mask"] = made.mask.astype(read("mask").dtype)
        out[f"synth.{i}.label"] = np.array([made.label], read("label").dtype)
    return out


@cache
def features(case: str, precision: str) -> dict[str, Any]:
    """Patch features p and q of all streams, by the stored names."""
    config, nets = GOLDEN.cases[case], networks(case, precision)
    out = {}
    for stream in STREAMS:
        maps = feature_maps(case, stream, precision)
        out[f"ffc.per_layer.{stream}"] = dfd.layer_features(maps, config["per_layer_dim"])
        out[f"ffc.p.{stream}"] = dfd.patch_features(maps, config["per_layer_dim"], config["target_dim"])
        out[f"adaptor.q.{stream}"] = nets["adaptor"](out[f"ffc.p.{stream}"]).detach()
    return out


@cache
def judged(case: str, precision: str) -> dict[str, Any]:
    """Scores per cell, maps, fused scores, in eval mode."""
    config, nets, rows = GOLDEN.cases[case], networks(case, precision), features(case, precision)
    n, out = config["grids"][0], {}
    with torch.no_grad():
        for letter, path in PATHS.items():
            for stream in STREAMS:
                out[f"eval.phi_{letter}.{stream}"] = nets[path](rows[f"adaptor.q.{stream}"]).reshape(-1, n, n)
        layers = list(nets["perlin"])
        x = torch.nn.Sequential(*layers[:3])(rows["adaptor.q.a_h"])
        out["eval.phi_P_stage.mlp.a_h"] = x.unflatten(0, (-1, n * n))
        out["eval.phi_P_stage.vit.a_h"] = layers[3](x).unflatten(0, (-1, n * n))
    maps = {}
    for letter, path in PATHS.items():
        streams = config["runs"]["score"]["streams"]
        grids = np.stack([-to_numpy(out[f"eval.phi_{letter}.{stream}"]) for stream in streams.values()])
        large = dfd.enlarge(grids, config["image_size"], config["sigma"])
        out |= {f"score.map_{letter}.{band}": x for band, x in zip(streams, large, strict=True)}
        maps[path] = out[f"score.map_{letter}"] = large.sum(axis=0)
        assert config["image_score"] == "max"
        out[f"score.image_{letter}"] = maps[path].max(axis=(1, 2))
    assert set(config["path_weights"].values()) == {0.5}
    scale = dfd.scale_by_set(maps)
    out["score.fused_image"], out["score.fused_map_code"] = dfd.fuse(maps, scale)
    whole = {path: {"score": (1.0, 0.0), "map": dfd.affine(m.min(), m.max())} for path, m in maps.items()}
    out["score.fused_map_setminmax"] = dfd.fuse(maps, whole)[1]
    return {k: to_numpy(v) for k, v in out.items()}


@cache
def trained(case: str, precision: str) -> dict[str, Any]:
    """One training step: stages, losses, gradients, and what is left after both optimisers moved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dfd, "MARGIN", GOLDEN.cases[case]["hinge_margin"])
        return one_step(case, precision)


def one_step(case: str, precision: str) -> dict[str, Any]:
    config, rows = GOLDEN.cases[case], features(case, precision)
    run = config["runs"]["train"]
    assert set(run["loss_weights"].values()) == {1}
    assert set(run["L_Per_weights"].values()) == {0.5}
    bands = ("l", "h")
    mask = given(case, "input.mask", precision)[:, 0]
    noise = {band: given(case, f"train.noise.n_{band}", precision) for band in bands}
    n, out = config["grids"][0], {"train.mask_grid": dfd.on_grid(mask, config["grids"][0])}

    nets = networks(case, precision).train()
    pairs: dict[str, list[Any]] = {k: [] for k in ("Gau", "pix", "cls", "Per", "Sim")}
    for band in bands:
        clean, bad = rows[f"adaptor.q.n_{band}"], rows[f"adaptor.q.a_{band}"]
        scores = nets["perlin"](bad)
        out[f"train.phi_P.a_{band}"] = scores.reshape(-1, n, n)
        both = nets["gaussian"](torch.cat([clean, clean + noise[band]]))
        out[f"train.phi_G.n_{band}"], out[f"train.phi_G_noisy.n_{band}"] = both.chunk(2)
        pixel, image = dfd.perlin_losses(scores, mask)
        found = (dfd.gaussian_loss(both), pixel, image, dfd.perlin_loss(scores, mask), dfd.similarity(clean, bad, mask))
        for values, value in zip(pairs.values(), found, strict=True):
            values.append(value)
        if band == "l":
            out["train.L_Per_no_anomaly"] = dfd.perlin_loss(scores, torch.zeros_like(mask))
    out |= {f"train.L_{k}": torch.stack(v) for k, v in pairs.items()}

    def loss(nets: Any) -> Any:
        normal, pasted = ([rows[f"ffc.p.{kind}_{band}"] for band in bands] for kind in "na")
        return dfd.train_loss(nets, normal, pasted, mask, [noise[band] for band in bands])

    nets = networks(case, precision).train()
    out["train.loss"] = loss(nets)
    out["train.loss"].backward()
    out |= {f"train.grad.{k}": p.grad for k, p in nets.named_parameters()}

    assert run["steps"] == 1
    nets, optimizers = networks(case, precision), run["optimizer"]
    ours = {"phi_G": "gaussian", "phi_P": "perlin", "adaptor": "adaptor"}
    groups = [
        Group(nets[ours[name]], lr=how["lr"], weight_decay=float(how["weight_decay"]))
        for name, how in optimizers.items()
    ]
    train(lambda batch: loss(nets), groups, lambda epoch: [0], recipe_of(optimizers["adaptor"], run["steps"]))
    out |= {f"train.after1.{k}": v for k, v in parameters_of(nets).items()}
    return {k: to_numpy(v) for k, v in out.items()}


def ours(name: str, precision: str) -> np.ndarray:
    case, run, key = GOLDEN.split(name)
    full = f"{run}.{key}" if run else key
    if full.startswith(("freq.", "synth.")):
        return pictures(case)[full]
    if full.startswith(("ffc.", "adaptor.")):
        return to_numpy(features(case, precision)[full])
    if run == "train":
        kind, _, theirs = key.partition(".")
        return trained(case, precision)[f"train.{kind}.{our_name(theirs)}" if kind in ("grad", "after1") else full]
    return judged(case, precision)[full]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [name for name in GOLDEN.expected if name not in FEATURES])
def test_stage_equals_the_authors(name, precision):
    GOLDEN.check(name, ours(name, precision), precision)


@cache
def authors_network(backbone: str, weights: Path, side: int, grids: tuple[int, ...]) -> Any:
    """What the authors call frozen: while they ask it for its channels, with a picture of ones, it is in training mode,
    and its batch norms move a tenth of the way towards that picture."""
    import timm
    from safetensors.torch import load_file

    outline = timm.create_model(backbone, pretrained=False).feature_info
    layers = tuple(i for i, info in enumerate(outline) if side // info["reduction"] in grids)
    made = timm.create_model(backbone, pretrained=False, features_only=True, out_indices=layers)
    made.load_state_dict(load_file(weights), strict=False)
    with torch.no_grad():
        made.train()(torch.ones(1, 3, side, side))
    return made.eval()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FEATURES)
def test_the_network_is_the_authors(name, precision, shared):
    pytest.importorskip("timm")
    case, _, key = GOLDEN.split(name)
    config = GOLDEN.cases[case]
    if config["stand_in"]:
        pytest.skip("features of a stand-in for the network")
    _, stream, layer = key.split(".")
    weights = shared / "weights" / config["weights"]
    net = authors_network(config["backbone"], weights, config["image_size"], tuple(config["grids"]))
    with torch.no_grad():
        maps = net(torch.from_numpy(GOLDEN.tensor(case, "", f"input.{stream}")))
    GOLDEN.check(name, to_numpy(maps[config["layers"].index(layer)]), precision)


def test_the_network_input_is_ours():
    """Split, then normalised: the bands of the pictures with drawn defects, where they are as large as the input."""
    compared = 0
    for case, config in GOLDEN.cases.items():
        mean, std = (np.array(config["normalize"][k], np.float32) for k in ("mean", "std"))
        for i in range(min(config["synthesis"]["samples"], config["batch"])):
            for letter, key in (("n", "image"), ("a", "augmented")):
                image = GOLDEN.tensor(case, "", f"synth.{i}.{key}")
                if image.shape[:2] != (config["image_size"],) * 2:
                    continue
                for band, x in zip("lh", split(image, axes=(0, 1)), strict=True):
                    stored = GOLDEN.tensor(case, "", f"input.{letter}_{band}")[i]
                    assert np.abs(np.moveaxis((x - mean) / std, 2, 0) - stored).max() < 1e-5
                    compared += 1
    if not compared:
        pytest.skip("no drawn defect is as large as the network's input")


@pytest.mark.parametrize("name", GOLDEN.expected)
def test_a_wrong_stage_is_noticed(name):
    with pytest.raises(AssertionError):
        GOLDEN.check(name, 2 * GOLDEN.tensors[name] + 1, "float64")
