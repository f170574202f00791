"""CUT on a pipeline of a million random parameters: what it promises, without any checkpoint."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from anomalens import synthesis
from anomalens.errors import MissingWeights, NoAnswer, NotMade, OutOfMemory, Unreadable, WrongInput
from anomalens.synthesis import cut as module
from anomalens.synthesis._cut_diffusion import Diffusion, refuse_unet
from anomalens.synthesis._cut_pictures import (
    IGNORED,
    Square,
    change,
    objections,
    opened,
    placed_ellipse,
    quality,
    ssim,
)  # fmt: skip
from anomalens.synthesis.cut import (
    AnomalyRequest,
    Clean,
    Cut,
    PasteGenerator,
    ic_lpips,
    inception_score,
    mask_attention_iou,
    prompts,
    pseudo_mask,
    read,
    run,
)  # fmt: skip
from anomalens.types import Sample, View

from ._tiny_diffusion import StubClip, picture, pipeline

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SHORT = {"image_size": 64, "steps": 10, "inner": 1}  # one or two steps at strength 0.1 or 0.2


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tiny(tokens):
    return pipeline(tokens)


def asked(seed: int = 0, **others) -> AnomalyRequest:
    return AnomalyRequest.of(
        others.pop("image", picture(seed)), "hazelnut", "crack", **{"strength": 0.1, "seed": seed, **others}
    )


def sample(seed: int = 0, height: int = 64, width: int = 64, name: str = "") -> Sample:
    pixels = picture(seed, height, width)
    return Sample(name or f"good/{seed}.png", {"image": View("image", lambda: pixels)}, category="hazelnut", label=0)


class Events(list):
    """What was traced."""

    def __call__(self, event, **values):
        self.append((event, values))

    def all(self, event):
        return [values for name, values in self if name == event]


# --- both modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "steps", "strength"), [("official", 10, 0.3), ("clean", 10, 0.4)])
def test_both_modes_give_pictures_masks_and_attention_without_cuda(tiny, monkeypatch, mode, steps, strength):
    def refuse(*_):
        raise AssertionError("CUDA was touched")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    events = Events()
    cut = Cut.from_pipeline(tiny, clip=StubClip(), mode=mode, steps=steps, inner=2, image_size=64)
    made = cut.generate(asked(strength=strength), trace=events)
    assert len(events.all("step")) == 4
    assert made.image.shape == made.source.shape == (64, 64, 3)
    assert made.image.dtype == np.uint8
    assert made.pseudo_mask.shape == made.mask.shape == (64, 64)
    assert 0 <= made.pseudo_mask.min() <= made.pseudo_mask.max() <= 1
    assert set(np.unique(made.mask)) <= {0, 1, IGNORED}
    assert made.attention.shape == (16, 16)
    assert 0 <= made.attention.min() < made.attention.max() <= 1
    assert np.isfinite([made.scores[k] for k in ("clip_gain", "changed_frac", "outside_ssim")]).all()
    assert made.accepted == (not made.objections)


def test_attention_loss_falls(tokens):
    fell = 0
    for seed in range(10):
        diffusion = Cut.from_pipeline(pipeline(tokens, seed)).diffusion
        request, events = asked(seed), Events()
        stages = Clean(diffusion, None, request.normal_prompt, request.detailed_prompt, (8,), 10, 0.1, trace=events)
        with diffusion.borrowed(16):
            c, t = diffusion.embed(request.prompt), stages.timesteps[0]
            z = diffusion.encode(request.image)
            z = stages.optimise(0, t, z, c, None)
            stages.inner = 1
            stages.optimise(0, t, z, c, None)
        before, after = (float(events.all("inner")[k]["L_att"]) for k in (0, -1))
        fell += after < before
    assert fell >= 9


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny):
    cut = Cut.from_pipeline(tiny, **SHORT)
    first, again, other = (cut.generate(asked(image=picture(1), seed=s)).image for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_step_gives_the_reconstruction(tiny):
    cut = Cut.from_pipeline(tiny, **SHORT)
    made = cut.generate(asked(strength=0.05))
    with torch.no_grad():
        decoded = cut.diffusion.decode(cut.diffusion.encode(made.source))
    assert np.array_equal(made.image, (decoded[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def test_official_mode_refuses_no_step_two_words_and_no_clip(tiny):
    cut = Cut.from_pipeline(tiny, clip=StubClip(), mode="official", steps=10)
    with pytest.raises(WrongInput, match=r"int\(10 \* 0.05\) = 0"):
        cut.generate(asked(strength=0.05))
    with pytest.raises(WrongInput, match=r"one token; .* has 2"):
        cut.generate(replace(asked(strength=0.3), prompt="a photo of a deep crack", anomaly_phrase="deep crack"))
    with pytest.raises(WrongInput, match="needs a CLIP"):
        Cut.from_pipeline(tiny, mode="official", steps=10).generate(asked(strength=0.3))


def test_two_words_work_in_clean_mode(tiny):
    events = Events()
    request = replace(asked(), prompt="a photo of a hazelnut with a deep crack on it", anomaly_phrase="deep crack")
    made = Cut.from_pipeline(tiny, **SHORT).generate(request, trace=events)
    assert made.image.shape == (64, 64, 3)
    assert events.all("inner")[0]["maps"].shape == (2, 16, 16)
    want = 1 - events.all("inner")[0]["maps"].amax(dim=(1, 2)).mean()
    assert events.all("inner")[0]["L_att"] == pytest.approx(float(want), abs=1e-6)


def test_an_empty_mask_keeps_the_source(tiny):
    cut = Cut.from_pipeline(tiny, **SHORT)
    made = cut.generate(asked(strength=0.2, mask=np.zeros((64, 64), bool)))
    reconstruction = cut.generate(asked(strength=0.05)).image
    assert np.array_equal(made.image, reconstruction)  # the source up to the error of the autoencoder
    assert not made.mask.any()


def test_outside_of_a_mask_latents_are_those_of_the_source(tiny):
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    events = Events()
    Cut.from_pipeline(tiny, **SHORT).generate(asked(strength=0.2, mask=mask), trace=events)
    outside = torch.from_numpy(~mask[::2, ::2])
    source, end = events.all("start")[0]["latent_source"], events.all("step")[-1]["latent_after_blend"]
    assert torch.equal(end[..., outside], source[..., outside])
    assert not torch.allclose(end[..., ~outside], source[..., ~outside], atol=0.1)


def test_the_embedding_moves_in_clean_mode_and_not_in_official_mode(tiny):
    moved, request = {}, asked(strength=0.1)
    for mode in ("clean", "official"):
        events = Events()
        cut = Cut.from_pipeline(tiny, clip=StubClip(), mode=mode, **SHORT)
        cut.generate(request, trace=events)
        before = cut.diffusion.embed(request.prompt)
        if mode == "clean":
            steps = events.all("embedding")
            assert float(steps[0]["gradient"].abs().max()) > 1e-3  # the authors' is zero
            assert steps[-1]["L_prompt"] < steps[0]["L_prompt"] - 0.01
            stages = Clean(cut.diffusion, None, request.normal_prompt, request.detailed_prompt, (8,))
            texts = (request.prompt, request.detailed_prompt, request.normal_prompt)
            after = stages.refine_embedding(*map(cut.diffusion.embed, texts))
            assert float(after[1, 8].norm()) == pytest.approx(float(before[1, 8].norm()), rel=1e-5)
        else:
            after = events.all("embedding")[0]["embedding"]
        moved[mode] = float((after - before).abs().max())
    assert moved["official"] < 1e-5 < 0.01 < moved["clean"]


# --- the user's objects, memory, precision ----------------------------------------------------------------------------


def state(tiny):
    networks = (tiny.unet, tiny.vae, tiny.text_encoder)
    return (
        [id(p) for p in tiny.unet.attn_processors.values()], [n.training for n in networks],
        [p.requires_grad for n in networks for p in n.parameters()], tiny.unet.is_gradient_checkpointing,
    )  # fmt: skip


def test_the_pipeline_is_given_back_as_it_was_also_after_an_error(tokens):
    own = pipeline(tokens, 1)
    own.unet.train()
    own.vae.decoder.conv_in.weight.requires_grad_(False)
    before = state(own)
    cut = Cut.from_pipeline(own, **SHORT)
    cut.generate(asked())
    assert state(own) == before

    def fail(event, **values):
        assert state(own) != before
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        cut.generate(asked(), trace=fail)
    assert state(own) == before


class Held:
    """Bytes that graphs hold for their gradients, now and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        return _Kept(tensor.detach(), self)  # a tensor with its graph would hold itself


class _Kept:
    def __init__(self, tensor, held):
        self.tensor, self.held = tensor, held
        held.now += tensor.nbytes
        held.most = max(held.most, held.now)

    def __del__(self):
        self.held.now -= self.tensor.nbytes


def test_memory_does_not_grow_with_inner_iterations(tiny):
    most = {}
    for inner in (2, 6):
        held = Held()
        cut = Cut.from_pipeline(tiny, **{**SHORT, "inner": inner}, checkpointing=False)
        gc.collect()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
            cut.generate(asked())
        most[inner] = held.most
    assert most[2] > 1e6
    assert most[6] == pytest.approx(most[2], rel=0.05)


def test_checkpointing_changes_memory_and_not_the_picture(tiny):
    made, most = {}, {}
    for checkpointing in (False, True):
        held = Held()
        cut = Cut.from_pipeline(tiny, **SHORT, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
            made[checkpointing] = cut.generate(asked()).image.astype(int)
        most[checkpointing] = held.most
    assert np.abs(made[True] - made[False]).max() <= 1
    assert most[True] < 0.7 * most[False]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_to_single(tokens, tiny, precision):
    want = Cut.from_pipeline(tiny, clip=StubClip(), **SHORT).generate(asked())
    half = pipeline(tokens)
    for part in ("unet", "vae", "text_encoder"):
        getattr(half, part).to(getattr(torch, precision))
    events = Events()
    made = Cut.from_pipeline(half, clip=StubClip(), **SHORT).generate(asked(), trace=events)
    assert all(values["attention"].dtype == torch.float32 for values in events.all("inner"))
    assert np.isfinite(made.attention).all()
    assert np.abs(made.image.astype(int) - want.image).mean() < 8


def test_an_overflow_leaves_the_latent_and_lowers_the_factor(tiny):
    stages = Clean(Cut.from_pipeline(tiny).diffusion, None, "a photo", "a crack", (1,))
    z, boost = torch.ones(1, 4, 2, 2), stages.boost
    assert torch.equal(stages.moved(z, torch.full_like(z, float("inf"))), z)
    assert stages.boost == boost / 4
    far = stages.moved(z, torch.ones_like(z))  # 20 would be too far
    assert float((far - z).norm()) == pytest.approx(0.1 * float(z.norm()))


def test_out_of_memory_names_settings_that_fit(tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny.vae, "decode", full)
    cut = Cut.from_pipeline(tiny, clip=StubClip(), **{**SHORT, "image_size": 288}, checkpointing=False)
    with pytest.raises(OutOfMemory, match=r"checkpointing=True, precision='float16', image_size=256, clip=''"):
        cut.generate(asked(strength=0.05))
    cut = Cut.from_pipeline(tiny, clip=StubClip(), mode="official", steps=10, inner=0)
    with pytest.raises(OutOfMemory, match="mode='clean'"):
        cut.generate(asked(strength=0.1))


def test_progress_tells_steps_and_the_time_left(tiny):
    told = []
    cut = Cut.from_pipeline(tiny, **SHORT)
    cut.generate(asked(strength=0.2), report=lambda *args: told.append(args))
    assert [t[:2] for t in told] == [(0, 2), (1, 2), (2, 2)]
    assert told[1][2]["left"] > 0 == told[2][2]["left"]
    assert 0 < told[2][2]["loss"] <= 1
    told.clear()
    cut = Cut.from_pipeline(tiny, clip=StubClip(), mode="official", steps=10, inner=1)
    cut.generate(asked(strength=0.1), report=lambda *args: told.append(args))
    assert [t[:2] for t in told] == [(0, 2), (1, 2), (2, 2)]  # PNDM's list has one more than the steps asked for
    assert told[2][2]["left"] == 0


def test_numbers_out_of_range_are_said_and_a_run_goes_on(tokens, tmp_path, caplog):
    own = pipeline(tokens)
    cut = Cut.from_pipeline(own, **SHORT)
    with torch.no_grad():
        own.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(NotMade, match="left the range of float32; give precision='bfloat16'"):
        cut.generate(asked(strength=0.0))
    assert run(cut, [asked(strength=0.0, source_id="good/7.png")], tmp_path).failed == 1
    assert "good/7.png: no picture came" in caplog.text


def test_plain_attention_equals_the_fast_one(tiny):
    diffusion, c = Diffusion.of(tiny), torch.randn(2, 77, 32)
    z, said = torch.randn(1, 4, 32, 32), {}
    for plain in (False, True):
        with diffusion.borrowed(16, plain=plain), torch.no_grad():
            said[plain] = diffusion(z, torch.tensor(300), c)
    for fast, slow in zip(said[False], said[True], strict=True):
        assert torch.allclose(fast, slow, atol=1e-5)


# --- sizes and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 96])
def test_any_resolution_with_attention_to_match(tiny, size):
    made = Cut.from_pipeline(tiny, **{**SHORT, "image_size": size}).generate(asked())
    assert made.image.shape == (size, size, 3)
    assert made.attention.shape == (size // 4, size // 4)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does(tiny):
    with pytest.raises(WrongInput, match="multiple of 4, such as 68"):
        Cut.from_pipeline(tiny, image_size=67).generate(asked())


def test_stable_diffusion_of_full_size_has_16_places_at_512_and_14_at_448(tiny):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):  # shapes without memory
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=8)
        z, c, t = torch.empty(1, 4, 64, 64), torch.empty(2, 77, 768), torch.tensor(1)
    diffusion = Diffusion(vae, tiny.text_encoder, tiny.tokenizer, unet, tiny.scheduler)
    assert [diffusion.cells(size) for size in (512, 448)] == [16, 14]
    with torch.device("meta"):  # Stable Diffusion 2.1 of 768 pixels
        large = UNet2DConditionModel(sample_size=96, block_out_channels=(32, 32, 32, 32))
    large = Diffusion(vae, tiny.text_encoder, tiny.tokenizer, large, tiny.scheduler)
    assert [large.cells(size) for size in (768, 512)] == [24, 16]
    assert diffusion.multiple == 64
    with diffusion.borrowed(16), torch.no_grad():
        said, attention = diffusion(z, t, c)
    assert said.shape == (2, 4, 64, 64)
    assert attention.shape == (2, 16, 16, 77)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64)])
def test_square_and_back(fit, shape):
    original = picture(2, *shape)
    square = Square(*shape, 160, fit)
    inside = square.put(original)
    assert inside.shape == (160, 160, 3)
    assert square.valid.mean() == pytest.approx(min(shape) / max(shape) if fit == "pad" else 1, abs=0.01)
    back = square.back(inside, np.zeros_like(original))
    rows, columns = square.source
    assert np.abs(back[rows, columns].astype(int) - original[rows, columns]).mean() < 4
    assert not back[: rows.start].any()
    assert not back[:, columns.stop :].any()
    marked = np.zeros(shape, bool)
    marked[20:30, 20:30] = True
    there_and_back = square.back(square.put(marked), np.zeros(shape, bool))
    assert np.array_equal(there_and_back, marked)


def test_a_long_picture_is_painted_in_its_own_shape(tiny):
    image = picture(3, 40, 100)
    made = Cut.from_pipeline(tiny, **SHORT).generate(asked(image=image))
    painted, soft, mask = made.placed()
    assert painted.shape == (40, 100, 3)
    assert soft.shape == mask.shape == (40, 100)
    assert not made.mask[:10].any()  # padding is never a defect


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_phrase_is_found(tiny):
    find = Cut.from_pipeline(tiny).diffusion.find
    assert find("a photo of a hazelnut with a crack on it", "crack") == (8,)
    assert find("a photo of a hazelnut with a deep crack on it", "deep crack") == (8, 9)
    assert find("a photo of a hazelnut with a crak on it", "crak") == (8, 9)  # a word of two tokens
    twice = "a crack on a hazelnut with a crack"
    assert find(twice, "crack") == (8,)  # the last, unless stated
    assert find(twice, "crack", occurrence=0) == (2,)


def test_a_missing_phrase_prints_the_tokens(tiny):
    diffusion = Cut.from_pipeline(tiny).diffusion
    with pytest.raises(
        WrongInput,
        match=r"'dent'.* is not in the prompt 'a photo of a hazelnut'; its tokens are 1:a 2:photo 3:of 4:a 5:hazelnut",
    ):
        diffusion.find("a photo of a hazelnut", "dent")
    with pytest.raises(WrongInput, match=r"is 1 times in the prompt, without occurrence 3: 'a photo"):
        diffusion.find("a photo of a hazelnut", "photo", occurrence=3)
    with pytest.raises(WrongInput, match="has 100 tokens; the text encoder reads 75"):
        diffusion.find("crack " * 100, "crack")
    with pytest.raises(WrongInput, match=r"'scratch'.* 8:crack"):
        Cut.from_pipeline(tiny, **SHORT).generate(replace(asked(), anomaly_phrase="scratch"))
    with pytest.raises(WrongInput, match=r"positions=\(0,\) must be .* 1 to 10; the tokens are \['a', 'photo'"):
        Cut.from_pipeline(tiny, **SHORT).generate(replace(asked(), positions=(0,)))


def test_the_prompt_bank_has_the_generic_list_and_takes_another(tmp_path):
    names = {entry.name for entry in prompts()}
    assert names == {"scratch", "crack", "hole", "stain", "dent", "contamination", "broken_part", "colour_change",
                     "missing_part", "bent", "frayed", "cut"}  # fmt: skip
    for entry in prompts():
        assert entry.phrase in entry.prompt
        assert "{object}" in entry.prompt
        assert "{object}" in entry.detailed
    own = tmp_path / "own.yaml"
    own.write_text("objects: {pill: [{name: chip, phrase: chip, prompt: 'a {object} chip', detailed: rough}]}")
    assert [entry.name for entry in prompts("pill", own)] == ["chip"]
    with pytest.raises(WrongInput, match="nothing for 'nut'"):
        prompts("nut", own)
    for text, what in (
        ("objects: {pill: [{name: 3}]}", "each needs name"),
        ("[1", "cannot be read"),
        ("4", "no prompt bank"),
    ):
        own.write_text(text)
        with pytest.raises(WrongInput, match=what):
            prompts("pill", own)


def test_a_language_model_proposes_a_bank_to_be_read(tmp_path):
    from anomalens.reasoning.endpoint import Callable_

    good = {
        "name": "chip",
        "phrase": "chip",
        "prompt": "a photo of {object} with a chip",
        "detailed": "of {object}, rough",
    }
    bad = [{**good, "phrase": "dent"}, {**good, "detailed": "no object"}, {"name": "x"}, "text"]
    asked_for = []

    def says(messages):
        asked_for.append(messages[0].text)
        return "Here:\n```json\n" + json.dumps({"defects": [good, *bad]}) + "\n```"

    file = tmp_path / "pill.yaml"
    found = module.propose("pill", Callable_(says), file, count=5)
    assert "Name 5 defects" in asked_for[0]
    assert "a photo of {object}" in asked_for[0]
    assert [entry.name for entry in found] == ["chip"]
    assert prompts("pill", file) == found
    assert "Read and correct it" in file.read_text()
    with pytest.raises(NoAnswer, match=r"no defect of 'nut' .*'I cannot'"):
        module.propose("nut", Callable_(lambda _: "I cannot"), tmp_path / "nut.yaml")
    assert not (tmp_path / "nut.yaml").exists()


def test_a_request_takes_its_sentences_from_the_bank_or_plain_words():
    known = AnomalyRequest.of(picture(), "eyelet", "crack")
    assert known.prompt == "a photo of an eyelet with a crack on it"
    assert known.normal_prompt == "a photo of an eyelet"
    assert "jagged" in known.detailed_prompt
    other = AnomalyRequest.of(picture(), "nut", "worm hole")
    assert other.anomaly_phrase == "worm hole"
    assert other.prompt == other.detailed_prompt == "a photo of a nut with a worm hole on it"
    with pytest.raises(WrongInput, match="uint8"):
        AnomalyRequest.of(picture().astype(float), "nut", "crack")
    with pytest.raises(WrongInput, match="as NumPy arrays, the mask may be None; got str and NoneType"):
        AnomalyRequest.of("nut.png", "nut", "crack")
    with pytest.raises(WrongInput, match="mask of the picture's size"):
        AnomalyRequest.of(picture(), "nut", "crack", mask=np.zeros((3, 3), bool))
    with pytest.raises(WrongInput, match=r"0.2 to 0.5 is sensible; got 1.5"):
        AnomalyRequest.of(picture(), "nut", "crack", strength=1.5)


# --- pseudo masks and the filter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_pseudo_masks_of_pasted_blobs_overlap_the_truth(seed):
    made, truth = PasteGenerator(image_size=256).with_truth(asked(seed, image=picture(seed, 256, 256)))
    found = made.mask == 1
    assert (found & truth).sum() / (found | truth).sum() >= 0.5
    assert mask_attention_iou(made.mask, made.attention) > 0.1


def test_a_pseudo_mask_keeps_to_where_a_defect_may_be_and_drops_specks():
    source = np.full((128, 128, 3), 100, np.uint8)
    made = source.copy()
    made[20:60, 20:60] = 200
    made[100:103, 100:103] = 255
    everywhere = pseudo_mask(np.ones((8, 8)), made, source)
    assert not everywhere.mask.any()  # attention that is the same everywhere says nothing
    looked = np.zeros((8, 8), np.float32)
    looked[1:4, 1:4], looked[6, 6] = 1, 1
    found = pseudo_mask(looked, made, source)
    assert (found.mask[25:55, 25:55] == 1).mean() > 0.9
    assert (found.mask[95:108, 95:108] != 1).all()
    assert (found.mask == IGNORED).any()
    allowed = np.zeros((128, 128), bool)
    allowed[:, 40:] = True
    kept = pseudo_mask(looked, made, source, allowed)
    assert not kept.mask[:, :40].any()
    assert not kept.soft[:, :40].any()


def test_a_pseudo_mask_covers_at_most_thirty_percent():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 100, (96, 96, 3)).astype(np.uint8)
    found = pseudo_mask(rng.random((6, 6)), 255 - source, source)
    assert 0 < (found.mask == 1).mean() <= 0.3


def test_opening_equals_a_slow_one():
    mask = np.random.default_rng(1).random((12, 14)) < 0.75
    want = np.zeros_like(mask)
    padded = np.pad(mask, 1, constant_values=True)
    for y, x in itertools.product(range(14), range(16)):  # every 3 x 3 square that fits into the padded mask
        square = padded[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if 0 < y < 13 and 0 < x < 15 and square.all():
            want[max(0, y - 2) : y + 1, max(0, x - 2) : x + 1] = True
    assert np.array_equal(opened(mask), want & mask)


def test_ssim_equals_a_slow_one():
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 256, (24, 24, 3)).astype(np.uint8) for _ in range(2))
    offsets = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    x, y = (p @ np.array([0.299, 0.587, 0.114]) / 255 for p in (a, b))
    px, py = (p[12 - 6 : 12 + 7, 11 - 6 : 11 + 7] for p in (x, y))
    mx, my = (window * px).sum(), (window * py).sum()
    vx, vy = (window * (px - mx) ** 2).sum(), (window * (py - my) ** 2).sum()
    cov = (window * (px - mx) * (py - my)).sum()
    want = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert ssim(a, b)[12, 11] == pytest.approx(want, abs=1e-4)
    assert ssim(a, a) == pytest.approx(1, abs=1e-3)


def test_the_filter_rejects_unchanged_and_destroyed_pictures():
    rng = np.random.default_rng(3)
    source = picture(4, 128, 128)
    nothing = np.zeros((128, 128), np.uint8)
    blob = placed_ellipse((128, 128), 30, None, rng)[..., None]
    good = np.rint(source + blob * (255.0 - 2 * source.astype(float))).astype(np.uint8)
    faint = np.clip(source + rng.normal(0, 3, source.shape), 0, 255).astype(np.uint8)
    noise = rng.integers(0, 256, source.shape).astype(np.uint8)
    assert not objections(quality(good, source, (blob[..., 0] > 0.5).astype(np.uint8), 0.1))
    assert "nearly nothing changed" in objections(quality(source, source, nothing, 0.1))[0]
    assert "nearly nothing changed" in objections(quality(faint, source, nothing, 0.1))[0]
    destroyed = " ".join(objections(quality(noise, source, nothing, 0.1)))
    assert "too much changed" in destroyed
    assert "the object outside" in destroyed
    assert "CLIP sees no more" in objections(quality(good, source, (blob[..., 0] > 0.5).astype(np.uint8), -0.1))[0]
    assert change(source, source).max() == 0


def test_clip_gain_is_what_it_says(tiny):
    clip = StubClip()
    made = Cut.from_pipeline(tiny, clip=clip, **SHORT).generate(asked())
    request = made.request

    def near(pixels, sentence):
        seen = clip.pictures(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None])
        return float(torch.cosine_similarity(seen, clip.sentences([sentence])))

    gain = {k: near(p, request.detailed_prompt) - near(p, request.normal_prompt) for k, p in
            (("made", made.image), ("source", made.source))}  # fmt: skip
    assert made.scores["clip_gain"] == pytest.approx(gain["made"] - gain["source"], abs=1e-5)
    assert Cut.from_pipeline(tiny, **SHORT).generate(asked()).scores["clip_gain"] is None


def test_a_clip_of_ours_judges(tiny):
    pytest.importorskip("open_clip")
    cut = Cut.from_pipeline(tiny, clip="clip:tiny?weights=random", **SHORT)
    events = Events()
    made = cut.generate(asked(), trace=events)
    assert np.isfinite(made.scores["clip_gain"])
    assert 0 < events.all("inner")[0]["L_img"] < 2


# --- judging many -----------------------------------------------------------------------------------------------------


def test_inception_score_of_known_cases():
    assert inception_score(np.eye(5)) == pytest.approx(5)
    assert inception_score(np.full((7, 4), 0.25)) == pytest.approx(1)
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    marginal = p.mean(axis=0)
    assert inception_score(p) == pytest.approx(np.exp(np.mean([np.sum(r * np.log(r / marginal)) for r in p])))
    with pytest.raises(WrongInput, match="rows sum to 1"):
        inception_score(np.ones((3, 3)))


def test_ic_lpips_of_known_cases():
    def distance(a, b):
        return abs(a - b)

    assert ic_lpips([1, 2, 10, 14], [0, 12], distance) == pytest.approx((1 + 4) / 2)
    assert np.isnan(ic_lpips([1, 11], [0, 12], distance))
    with pytest.raises(WrongInput, match="no reference"):
        ic_lpips([1], [], distance)


def test_mask_attention_iou_of_known_cases():
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 1
    looked = np.zeros((2, 2))
    looked[0, 0] = 1
    assert mask_attention_iou(mask, looked) == 1
    assert mask_attention_iou(1 - mask, looked) == 0
    mask[:2, :4] = IGNORED
    assert mask_attention_iou(mask, looked) == 1


# --- many pictures ----------------------------------------------------------------------------------------------------


def pasted(count: int = 4) -> list[AnomalyRequest]:
    kinds = itertools.cycle(("crack", "stain"))
    return [
        AnomalyRequest.of(picture(k, 128, 128), "metal nut", kind, seed=k, source_id=f"good/{k}.png")
        for k, kind in zip(range(count), kinds, strict=False)
    ]


class Counting(PasteGenerator):
    made = 0

    def generate(self, request):
        self.made += 1
        return super().generate(request)


def test_a_run_writes_pictures_masks_and_a_complete_manifest(tmp_path):
    told = []
    summary = run(PasteGenerator(128), pasted(), tmp_path, report=lambda *args: told.append(args))
    assert (summary.made, summary.skipped, summary.failed) == (4, 0, 0)
    assert [t[:2] for t in told] == [(k, 4) for k in range(5)]
    assert told[2][2]["left"] > 0
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [
        f"metal_nut/{kind}/images/{n:06d}.png" for n in range(2) for kind in ("crack", "stain")
    ]
    for line, request in zip(lines, pasted(), strict=True):
        assert {
            "key",
            "request",
            "seed",
            "source",
            "scores",
            "accepted",
            "objections",
            "version",
            "checkpoint",
            "settings",
        } <= set(line)
        assert line["request"]["prompt"] == request.prompt
        assert line["source"] == request.source_id
        assert line["checkpoint"]["licence"] == "ours"
        soft = np.load(tmp_path / line["soft"])
        assert soft.shape == (128, 128)
        assert soft.dtype == np.float32
    samples = read(tmp_path, accepted=False)
    want = PasteGenerator(128).generate(pasted()[0])
    assert np.array_equal(samples[0].image(), want.image)
    assert np.array_equal(samples[0].mask.read(), want.mask)
    assert (samples[0].category, samples[0].defect, samples[0].label) == ("metal nut", "crack", 1)
    assert len(read(tmp_path)) == summary.accepted == sum(line["accepted"] for line in lines)


def test_rejected_ones_are_kept_in_the_manifest_only(tmp_path):
    class Unchanged(PasteGenerator):
        def generate(self, request):
            made = super().generate(request)
            return replace(made, objections=("nearly nothing changed",))

    summary = run(Unchanged(128), pasted(1), tmp_path)
    assert (summary.made, summary.accepted) == (1, 0)
    assert read(tmp_path) == []
    assert read(tmp_path, accepted=False)[0].made["objections"] == ["nearly nothing changed"]


def test_a_run_goes_on_where_it_stopped(tmp_path):
    first = Counting(128)
    run(first, pasted(2), tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"key": "unfini')  # stopped while writing
    (tmp_path / "metal_nut/stain/soft/000000.npy").unlink()
    second = Counting(128)
    summary = run(second, iter(pasted(4)), tmp_path)
    assert (summary.made, summary.skipped, second.made) == (3, 1, 3)
    again = run(Counting(128), pasted(4), tmp_path)
    assert (again.made, again.skipped) == (0, 4)
    files = [json.loads(line)["image"] for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(files) == len(set(files)) == 5
    assert len(read(tmp_path, accepted=False)) == 4  # what was made again counts once
    (tmp_path / files[0]).unlink()  # thrown out by hand
    assert [s.id for s in read(tmp_path, accepted=False)] == [
        name for name in files[1:] if "stain/images/000000" not in name
    ]
    other = run(Counting(128, size=(0.3, 0.3)), pasted(1), tmp_path)  # other settings are other pictures
    assert other.made == 1


def test_a_picture_without_room_is_counted_and_the_run_goes_on(tmp_path):
    nowhere = replace(pasted(1)[0], mask=np.zeros((128, 128), bool))
    summary = run(PasteGenerator(128), [nowhere, *pasted(1)], tmp_path)
    assert (summary.made, summary.failed) == (1, 1)


def test_reading_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(WrongInput, match=r"no manifest\.jsonl"):
        read(tmp_path)


def test_requests_take_turns_and_leave_out_what_cannot_be_read(tiny, caplog):
    def damaged():
        raise Unreadable("good/9.png is damaged; copy it again.")

    cut = Cut.from_pipeline(tiny)
    bad = Sample("good/9.png", {"image": View("image", damaged)}, label=0)
    asked_for = list(cut.requests([sample(0), bad, sample(1)], 6, seed=40))
    assert [r.source_id for r in asked_for] == ["good/0.png", "good/1.png"] * 2
    assert [r.seed for r in asked_for] == [40, 42, 43, 45]
    assert len({r.anomaly for r in asked_for}) == 4
    assert "damaged" in caplog.text
    pairs = {(r.source_id, r.anomaly) for r in cut.requests([sample(k) for k in range(11)], 11 * 12)}
    assert len(pairs) == 11 * 12
    own = Cut.from_pipeline(tiny, object_name="eyelet", phrase="worm hole", prompt="{object} with a worm hole")
    (request,) = own.requests([sample(0)], 1)
    assert (request.prompt, request.anomaly_phrase) == ("an eyelet with a worm hole", "worm hole")
    with pytest.raises(WrongInput, match="no normal pictures"):
        next(cut.requests([], 1))


def test_a_run_of_cut_states_checkpoint_and_licence(tiny, tmp_path):
    cut = Cut.from_pipeline(tiny, **SHORT)
    run(cut, [asked()], tmp_path)
    (line,) = map(json.loads, (tmp_path / "manifest.jsonl").read_text().splitlines())
    assert line["checkpoint"] == {"sha256": cut.diffusion.fingerprint, "licence": "unknown"}
    assert len(cut.diffusion.fingerprint) == 64
    assert line["settings"]["steps"] == 10
    assert line["settings"]["clip"] == ""
    assert Cut.from_pipeline(tiny, clip=StubClip()).described()["settings"]["clip"] == "StubClip"


# --- as a maker -------------------------------------------------------------------------------------------------------


def test_as_a_maker_it_changes_the_picture_inside_its_mask_only(tiny):
    cut = Cut.from_pipeline(tiny, **SHORT, filtered=False, phrase="crack", size=(0.5, 0.6), severity=(0.3, 0.3))
    source = sample(1, 80, 64)
    made = cut(source, np.random.default_rng(0))
    again = cut(source, np.random.default_rng(0))
    mask = made.mask.read()
    assert made.label == 1
    assert made.defect == "cut"
    assert mask.any()
    assert np.array_equal(made.image()[~mask], source.image()[~mask])
    assert not np.array_equal(made.image()[mask], source.image()[mask])
    assert np.array_equal(made.image(), again.image())
    assert made.id == again.id
    assert made.made["measured"]["outside"] == 0
    assert made.made["measured"]["size"] <= 0.7
    assert made.made["drawn"]["anomaly"] == "crack"
    assert made.made["drawn"]["strength"] == pytest.approx(0.15)
    json.dumps(made.made)


def test_as_a_maker_it_gives_up_after_three_rejections(tiny, monkeypatch):
    tried = []
    cut = Cut.from_pipeline(tiny, **SHORT, size=(0.4, 0.4))
    plain = cut.generate

    def rejected(request):
        tried.append(request.seed)
        return replace(plain(replace(request, strength=0.0)), objections=("too much changed",))

    monkeypatch.setattr(cut, "generate", rejected)
    with pytest.raises(NotMade, match=r"3 generations \(too much changed"):
        cut(sample(), np.random.default_rng(0))
    assert len(set(tried)) == 3


def test_as_a_maker_it_refuses_several_lights(tiny):
    lit = replace(sample(), views={f"light_{k}": sample().views["image"] for k in range(2)})
    with pytest.raises(WrongInput, match="cut paints one"):
        Cut.from_pipeline(tiny)(lit, np.random.default_rng(0))


def test_it_is_a_maker_with_a_card():
    assert synthesis.card("cut").extras == ("diffusion", "clip")
    made = synthesis.create("cut", weights="somewhere", object_name="hazelnut", phrase="crack", mode="official")
    assert made.name == "cut"
    with pytest.raises(WrongInput, match="inner is at least 0; got -1"):
        synthesis.create("cut", inner=-1)
    with pytest.raises(WrongInput, match="mode='Clean' is not of type"):
        Cut(mode="Clean")
    assert Cut(thresholds={0: 0.5}).thresholds == ((0, 0.5),)


def test_the_command_takes_it(tiny, tmp_path):
    from click.testing import CliRunner

    from anomalens.apps.cli import main
    from anomalens.images import encode

    good = tmp_path / "good"
    good.mkdir()
    for k in range(2):
        (good / f"{k}.png").write_bytes(encode(picture(k)))
    saved(tiny, tmp_path / "sd")
    maker = (
        f"cut:weights={tmp_path / 'sd'},clip=,object_name=hazelnut,phrase=crack,image_size=64,steps=6,inner=1,"
        "filtered=false,size=0.5,severity=0.4"
    )
    out = tmp_path / "out"
    told = CliRunner().invoke(main, ["synth", str(good), "--maker", maker, "--n", "2", "--out", str(out)])
    assert told.exit_code == 0, told.output
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert len(list((out / "ground_truth/cut").iterdir())) == 2


# --- files and what is missing ----------------------------------------------------------------------------------------


def saved(tiny, folder: Path) -> Path:
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        getattr(tiny, part).save_pretrained(folder / part)
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
    return folder


def test_a_saved_checkpoint_gives_the_same_picture(tiny, tmp_path):
    cut = Cut.from_local(saved(tiny, tmp_path), clip="", device="cpu", **SHORT)
    assert cut.diffusion.licence == "creativeml-openrail-m"
    want = Cut.from_pipeline(tiny, **SHORT)
    assert cut.diffusion.fingerprint == want.diffusion.fingerprint
    assert np.array_equal(cut.generate(asked()).image, want.generate(asked()).image)


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return saved(tiny, tmp_path_factory.mktemp("checkpoint"))


def test_a_checkpoint_as_it_was_published_gives_the_same_networks(checkpoint, tokens, tmp_path):
    """Half precision variant, names of weights and files of the tokenizer of 2022, a safety checker."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "old")
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        found = load_file(folder / part / f"{stem}.safetensors")
        (folder / part / f"{stem}.safetensors").unlink()
        weights = {}
        for name, tensor in found.items():
            for new, former in old.items() if part == "vae" else ():
                name = name.replace(new, former)
            weights[f"text_model.{name}" if part == "text_encoder" else name] = tensor.half()
        if part == "text_encoder":
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(weights, folder / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokens, folder / "tokenizer")  # vocab.json and merges.txt alone: no length is said
    (folder / "safety_checker").mkdir()
    made = Cut.from_local(folder, clip="", device="cpu", precision="float16", **SHORT)
    want = Cut.from_local(checkpoint, clip="", device="cpu", precision="float16", **SHORT)
    assert made.diffusion.fingerprint == want.diffusion.fingerprint
    assert torch.equal(made.diffusion.ids("a crack"), want.diffusion.ids("a crack"))


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("vae/config.json", "vae"),
        ("scheduler/scheduler_config.json", "scheduler"),
        ("tokenizer/tokenizer.json", "tokenizer"),
    ],
)
def test_a_damaged_file_is_named_by_its_folder(checkpoint, tmp_path, file, part):
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    (folder / file).write_bytes((folder / file).read_bytes()[:50])
    with pytest.raises(WrongInput, match=rf"damaged/{part} cannot be read \(.+\); fetch the whole folder again"):
        Cut.from_local(folder, clip="", device="cpu")


def test_weights_that_a_file_lacks_are_not_made_up(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "holes")
    file = folder / "text_encoder/model.safetensors"
    weights = load_file(file)
    del weights["encoder.layers.0.mlp.fc1.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(MissingWeights, match=r"text_encoder lacks 1 of its weights, .*mlp\.fc1\.weight the first"):
        Cut.from_local(folder, clip="", device="cpu")


def test_checkpoints_of_other_kinds_are_refused(tiny, checkpoint, tmp_path):
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

    with pytest.raises(WrongInput, match=r"addition_embed_type='text_time'.* Stable Diffusion XL"):
        refuse_unet({"addition_embed_type": "text_time"}, {})
    with torch.device("meta"):
        inpainting = UNet2DConditionModel(in_channels=9, block_out_channels=(32, 32, 32, 32))
    with pytest.raises(WrongInput, match="takes 9 channels and the autoencoder gives 4, as for inpainting"):
        Cut.from_pipeline(SimpleNamespace(**{**vars(tiny), "unet": inpainting}))
    flow = SimpleNamespace(**{**vars(tiny), "scheduler": FlowMatchEulerDiscreteScheduler()})
    with pytest.raises(WrongInput, match=r"FlowMatchEulerDiscreteScheduler .* CUT needs a Stable Diffusion 1"):
        Cut.from_pipeline(flow)
    folder = shutil.copytree(checkpoint, tmp_path / "sd3")
    (folder / "unet").rename(folder / "transformer")
    with pytest.raises(WrongInput, match="a transformer for a U-Net, as Stable Diffusion 3"):
        Cut.from_local(folder)
    euler = SimpleNamespace(**{**vars(tiny), "scheduler": EulerDiscreteScheduler()})
    with pytest.raises(WrongInput, match="EulerDiscreteScheduler wants; use a checkpoint with PNDMScheduler"):
        Cut.from_pipeline(euler, clip=StubClip(), mode="official", steps=10).generate(asked())
    assert Cut.from_pipeline(euler, **SHORT).generate(asked()).image.std() > 0  # clean mode brings its own


def test_what_cannot_be_is_refused_in_a_sentence(tiny, checkpoint, monkeypatch):
    from diffusers import UNet2DConditionModel

    with pytest.raises(WrongInput, match="steps=5000 is more than the 1000 timesteps"):
        Cut.from_pipeline(tiny, image_size=64, steps=5000).generate(asked())
    with pytest.raises(WrongInput, match=r"has pictures\(pixels\) and sentences\(list\) as Judge says; got object"):
        Cut.from_pipeline(tiny, clip=object())
    with pytest.raises(WrongInput, match="device 'gpu'; choose 'auto', 'cpu' or 'cuda'"):
        Cut.from_local(checkpoint, device="gpu")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNet2DConditionModel, "to", full)
    with pytest.raises(OutOfMemory, match="in float32; use precision='float16' or device='cpu'"):
        Cut.from_local(checkpoint, device="cpu")


def test_the_schedule_of_the_checkpoint_is_kept(tiny):
    from diffusers import DDIMScheduler

    known = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **known)
    own = Cut.from_pipeline(SimpleNamespace(**{**vars(tiny), "scheduler": scheduler}))
    schedule = Clean(own.diffusion, None, "a photo", "a crack", (1,)).schedule
    assert {k: schedule.config[k] for k in known} == known


def test_missing_weights_are_named(tiny, tmp_path):
    folder = saved(tiny, tmp_path / "tiny")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae/config.json").unlink()
    with pytest.raises(MissingWeights, match=r"lacks vae/config.json, unet/diffusion_pytorch_model.safetensors"):
        Cut.from_local(folder)
    with pytest.raises(MissingWeights, match="no folder on this machine"):
        Cut.from_local(tmp_path / "nowhere")
    with pytest.raises(MissingWeights, match=r"hub's cache .*`hf download nobody/nothing --local-dir FOLDER`"):
        Cut.from_local("nobody/nothing")
    with pytest.raises(WrongInput, match="no unet"):
        Cut.from_pipeline(type("Half", (), dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler"), 1))())


@pytest.mark.parametrize("library", ["diffusers", "transformers", "torch"])
def test_without_the_extra_the_library_works_and_says_what_to_install(library):
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "import anomalens, anomalens.synthesis.cut as cut\n"
        "from anomalens.errors import MissingExtra\n"
        "assert not {'torch', 'diffusers', 'transformers'} & {n for n, m in sys.modules.items() if m}\n"
        "import numpy as np\n"
        "request = cut.AnomalyRequest.of(np.zeros((64, 64, 3), np.uint8), 'nut', 'crack')\n"
        "for call in (lambda: cut.Cut.from_local('x/y'), lambda: cut.Cut().generate(request)):\n"
        "    try: call()\n"
        "    except MissingExtra as error: print(error)\n"
        "cut.PasteGenerator(128).generate(request)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count(f"CUT needs {library}") == 2
    assert told.stdout.count("pip install 'anomalens[diffusion,clip]'") == 2


def test_the_maker_of_the_file_is_cut():
    assert module.MAKER is Cut
