from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from anomalens.errors import CannotWrite, Diverged, WrongInput
from anomalens.parts import _checkpoint
from anomalens.parts import train as train_module
from anomalens.parts.threads import cores
from anomalens.parts.train import (
    Group,
    Recipe,
    Shuffled,
    load_parameters,
    parameters_of,
    seeded,
    share,
    train,
    training_device,
    watching,
)

torch = pytest.importorskip("torch")

N = 24
TRUTH = np.array([1.0, -2.0, 0.5], np.float32)


def data(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).normal(size=(n, 3)).astype(np.float32)
    return x, x @ TRUTH


X, Y = data()


def pairs(batch: int = 4, seed: int = 0, n: int = N, **more) -> Shuffled:
    return Shuffled(range(n), batch, lambda i, rng: (X[i], Y[i]), seed, **more)


def squares(weights):
    """Mean squared error of a linear model."""

    def loss(batch):
        x, y = map(torch.as_tensor, batch)
        return ((x @ weights - y) ** 2).mean()

    return loss


def start() -> torch.Tensor:
    return torch.zeros(3, requires_grad=True)


class Net(torch.nn.Module):
    """With batch norm and dropout: state beside the parameters, and random numbers in every step."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )

    def forward(self, x):
        return self.layers(x)[:, 0]


def net() -> Net:
    with seeded(1):
        return Net()


def net_loss(module):
    def loss(batch):
        x, y = map(torch.as_tensor, batch)
        return ((module(x + 0.1 * torch.randn_like(x)) - y) ** 2).mean()

    return loss


class Stop(Exception):
    """An interruption."""


def interrupted(loss, after: int):
    calls = iter(range(10**9))

    def wrapped(batch):
        if next(calls) == after:
            raise Stop
        return loss(batch)

    return wrapped


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=60, lr=0.05),
        Recipe(steps=400, lr=0.05, optimiser="adamw", schedule="cosine", warmup=5, ema=0.9),
        Recipe(steps=300, lr=0.02, optimiser="sgd", clip=1.0),
    ],
    ids=lambda r: r.optimiser,
)
def test_it_learns(recipe):
    weights = start()
    done = train(squares(weights), [weights], pairs(), recipe)
    assert np.allclose(weights.detach().numpy(), TRUTH, atol=0.02)
    assert done.loss < 1e-2
    assert done.steps == (recipe.steps or 60 * 6)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_it_does_what_a_plain_loop_does(optimiser):
    recipe = Recipe(epochs=3, lr=0.01, betas=(0.5, 0.99), momentum=0.8, weight_decay=0.1, optimiser=optimiser, clip=0.5)
    weights, plain = start(), start()
    train(squares(weights), {"w": weights}, pairs(), recipe)
    adam = {"lr": 0.01, "betas": (0.5, 0.99), "weight_decay": 0.1}
    optimiser = {
        "adam": lambda: torch.optim.Adam([plain], **adam),
        "adamw": lambda: torch.optim.AdamW([plain], **adam),
        "sgd": lambda: torch.optim.SGD([plain], lr=0.01, momentum=0.8, weight_decay=0.1),
    }[optimiser]()
    for epoch in range(3):
        for batch in pairs()(epoch):
            optimiser.zero_grad()
            squares(plain)(batch).backward()
            plain.grad *= min(1.0, 0.5 / (float(plain.grad.norm()) + 1e-6))
            optimiser.step()
    assert torch.allclose(weights, plain, atol=1e-6)


def test_groups_have_their_own_rate_decay_and_schedule():
    fast, slow, idle = (torch.ones(2, requires_grad=True) for _ in range(3))
    groups = [
        Group([fast]),
        Group([slow], lr=0.01, schedule="constant"),
        Group([idle], weight_decay=0.5),  # receives no gradient: neither moved nor decayed
    ]
    recipe = Recipe(steps=2, lr=0.1, optimiser="sgd", momentum=0.0, schedule="step", milestones=(0.5,), gamma=0.1)
    train(lambda batch: fast.sum() + slow.sum(), groups, pairs(), recipe)
    assert torch.allclose(fast, torch.tensor(1 - 0.1 - 0.01))
    assert torch.allclose(slow, torch.tensor(1 - 0.02))
    assert torch.equal(idle, torch.ones(2))


def test_accumulating_batches_equals_one_large_batch():
    small, large = start(), start()
    train(squares(small), [small], pairs(4), Recipe(epochs=4, lr=0.1, optimiser="sgd", accumulate=3))
    train(squares(large), [large], pairs(12), Recipe(epochs=4, lr=0.1, optimiser="sgd"))
    assert torch.allclose(small, large, atol=1e-6)


def test_accumulation_goes_on_across_epochs():
    weights = start()
    assert train(squares(weights), [weights], pairs(4), Recipe(epochs=3, accumulate=4)).steps == 3 * 6 // 4


def test_the_average_follows_its_formula():
    weights = torch.zeros(1, requires_grad=True)
    recipe = Recipe(steps=4, lr=0.5, optimiser="sgd", momentum=0.0, ema=0.9)
    train(lambda batch: -weights.sum(), [weights], pairs(), recipe)  # 0.5, 1.0, 1.5, 2.0
    average = 0.0
    for value in (0.5, 1.0, 1.5, 2.0):
        average = 0.9 * average + 0.1 * value
    assert weights.item() == pytest.approx(average, abs=1e-6)


def test_rates_follow_their_formulas():
    cosine = Recipe(steps=100, lr=0.2, warmup=10, schedule="cosine", lr_end=0.02)
    rates = [cosine.rate(t, 100) for t in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (t + 1) for t in range(10)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[55] == pytest.approx((0.2 + 0.02) / 2)
    assert rates[99] == pytest.approx(0.02 + 0.09 * (1 + math.cos(math.pi * 89 / 90)))
    by_epoch = Recipe(epochs=80, lr=2e-4, schedule="cosine", lr_end=4e-5, decay_until=76 / 80, changes="epoch")
    for epoch in (0, 1, 40, 75, 79):
        expected = 4e-5 + 1.6e-4 * (1 + math.cos(math.pi * min(epoch / 76, 1))) / 2
        rates = [by_epoch.rate(t, 800, 10) for t in range(10 * epoch, 10 * epoch + 10)]
        assert rates == pytest.approx([expected] * 10)
    steps = Recipe(steps=100, lr=1.0, schedule="step", milestones=(0.8, 0.9), gamma=0.2)
    assert [steps.rate(t, 100) for t in (79, 80, 89, 90, 99)] == pytest.approx([1, 0.2, 0.2, 0.04, 0.04])
    decaying = Recipe(epochs=3, lr=1.0, schedule="exponential", gamma=0.95)
    assert [decaying.rate(t, 30, 10) for t in (0, 9, 10, 29)] == pytest.approx([1, 1, 0.95, 0.95**2])


def test_the_rates_reach_the_optimiser():
    weights = torch.zeros(1, requires_grad=True)
    recipe = Recipe(epochs=2, lr=1.0, optimiser="sgd", momentum=0.0, schedule="exponential", gamma=0.5, warmup=2)
    train(lambda batch: -weights.sum(), [weights], pairs(12), recipe)
    assert weights.item() == pytest.approx(0.5 + 1.0 + 0.5 + 0.5)


def test_the_gradient_is_clipped_as_a_whole():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    recipe = Recipe(steps=1, lr=1.0, optimiser="sgd", momentum=0.0, clip=1.0)
    train(lambda batch: 30 * a.sum() + 40 * b.sum(), [a, b], pairs(), recipe)
    assert a.item() == pytest.approx(-0.6, abs=1e-5)
    assert b.item() == pytest.approx(-0.8, abs=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_keeps_tensors_in_float32(precision):
    module, kinds = net(), set()

    def loss(batch):
        x, y = map(torch.as_tensor, batch)
        out = module(x)
        kinds.add(out.dtype)
        return ((out.float() - y) ** 2).mean()

    before = float(loss(next(pairs(24)(0))).detach())
    done = train(loss, module, pairs(12), Recipe(epochs=60, lr=0.02, precision=precision))
    assert {torch.bfloat16, torch.float16} & kinds
    assert done.loss < before / 3
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_fp16_lowers_its_scale_when_the_gradient_overflows():
    weights = torch.zeros(1, requires_grad=True)
    seen = []

    def loss(batch):  # the gradient is 1000, so that a scale of 65536 overflows float16 on its way back
        seen.append(weights.item())
        return (weights.half() * 1000).sum().float()

    train(loss, [weights], pairs(), Recipe(steps=20, lr=0.001, optimiser="sgd", momentum=0.0, precision="fp16"))
    waiting = seen.count(0.0) - 1
    assert 5 <= waiting <= 12  # 65536 / 2^waiting * 1000 fits below 65504
    assert weights.item() == pytest.approx(-(20 - waiting), rel=1e-3)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def spoiled(weights, at: set[int]):
    calls = iter(range(10**9))

    def loss(batch):
        return squares(weights)(batch) * (math.nan if next(calls) in at else 1.0)

    return loss


def test_nan_stops_with_a_sentence_and_loses_nothing(tmp_path):
    weights, reference = start(), start()
    recipe = Recipe(steps=9, lr=0.1, checkpoint_minutes=0)
    with pytest.raises(Diverged, match=r"step 6 of 9, .*nan.*last finite loss .*lower lr than 0\.1.*kept"):
        train(spoiled(weights, {5}), [weights], pairs(), recipe, folder=tmp_path)
    train(squares(reference), [reference], pairs(), Recipe(steps=5, lr=0.1))
    assert torch.equal(weights, reference)
    assert _checkpoint.read(tmp_path)[1]["step"] == 5
    train(squares(weights), [weights], pairs(), recipe, folder=tmp_path)
    reference = start()
    train(squares(reference), [reference], pairs(), Recipe(steps=9, lr=0.1))
    assert torch.equal(weights, reference)


def test_nan_in_the_gradient_alone_is_noticed():
    weights = torch.zeros(1, requires_grad=True)
    with pytest.raises(Diverged, match="step 1 of 3, where the gradient"):
        train(lambda batch: weights.sqrt().sum() * 0, [weights], pairs(), Recipe(steps=3))  # 0 * inf


def test_nan_may_be_skipped_and_is_counted():
    module = net()
    calls = iter(range(100))

    def loss(batch):
        x, y = map(torch.as_tensor, batch)
        return ((module(x * (math.nan if next(calls) == 3 else 1)) - y) ** 2).mean()

    done = train(loss, module, pairs(), Recipe(steps=9, on_nan="skip"))
    assert (done.steps, done.skipped) == (9, 1)
    assert all(np.isfinite(a).all() for a in parameters_of(module).values())  # batch norm saw nan and forgot it


def test_skipping_gives_up_after_a_while():
    weights = start()
    with pytest.raises(Diverged, match="In a row: 50"):
        train(spoiled(weights, set(range(999))), [weights], pairs(), Recipe(steps=200, on_nan="skip"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either epochs or steps"),
        ({"epochs": 1, "steps": 1}, "either epochs or steps"),
        ({"steps": 0}, "steps of a recipe must be above 0"),
        ({"steps": 1, "lr": 0}, "lr above 0"),
        ({"steps": 1, "optimiser": "adan"}, "did you mean 'adam'"),
        ({"steps": 1, "schedule": "cosin"}, "did you mean 'cosine'"),
        ({"steps": 1, "precision": "fp8"}, "no precision"),
        ({"steps": 1, "ema": 1.0}, "ema"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(settings, message):
    with pytest.raises(WrongInput, match=message):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (lambda: [torch.zeros(2)], "requires a gradient"),
        (lambda: [], "no tensor"),
        (lambda: net().requires_grad_(False), "no tensor"),
        (lambda: [Group([w := start()]), Group([w])], "twice"),
        (lambda: [Group([start()]), start()], "wrap it"),
    ],
)
def test_what_cannot_be_trained_is_refused(parameters, message):
    with pytest.raises(WrongInput, match=message):
        train(lambda batch: None, parameters(), pairs(), Recipe(steps=1))


def test_a_length_that_nobody_says_is_asked_for():
    weights = start()
    endless = lambda epoch: (b for b in list(pairs()(epoch)))  # noqa: E731
    with pytest.raises(WrongInput, match="batches_per_epoch"):
        train(squares(weights), [weights], endless, Recipe(epochs=2))
    assert train(squares(weights), [weights], endless, Recipe(epochs=2), batches_per_epoch=6).steps == 12
    assert train(squares(weights), [weights], endless, Recipe(steps=7)).steps == 7
    assert train(squares(weights), [weights], lambda e: list(pairs()(e)), Recipe(epochs=2)).steps == 12
    with pytest.raises(WrongInput, match="at least one picture"):
        train(squares(weights), [weights], pairs(n=0), Recipe(epochs=2))
    with pytest.raises(WrongInput, match="no batch 0 in epoch 0"):
        train(squares(weights), [weights], lambda e: iter(()), Recipe(steps=2))
    with pytest.raises(WrongInput, match="less than one step"):
        train(squares(weights), [weights], pairs(), Recipe(epochs=1, accumulate=7))


# --- validation -------------------------------------------------------------------------------------------------------


def test_early_stop_keeps_the_best():
    weights = torch.zeros(1, requires_grad=True)
    recipe = Recipe(epochs=50, lr=1.0, optimiser="sgd", momentum=0.0, patience=3, keep="best")
    told = []
    done = train(
        lambda batch: -weights.sum(), [weights], pairs(24), recipe, validate=lambda: -abs(weights.item() - 4),
        report=lambda step, total, figures: told.append((step, total)),
    )  # fmt: skip
    assert done.scores == tuple((s, -abs(s - 4.0)) for s in range(1, 8))
    assert (done.best_step, done.steps, done.stopped_early) == (4, 7, True)
    assert weights.item() == 4
    assert told[0] == (0, 50)
    assert told[-2:] == [(6, 50), (7, 7)]


def test_validation_every_few_steps_and_at_the_end_keeping_the_last():
    weights = torch.zeros(1, requires_grad=True)
    recipe = Recipe(steps=10, lr=1.0, optimiser="sgd", momentum=0.0, validate_every=4)
    done = train(lambda batch: -weights.sum(), [weights], pairs(), recipe, validate=lambda: -weights.item())
    assert done.scores == ((4, -4.0), (8, -8.0), (10, -10.0))
    assert weights.item() == 10


def test_validation_sees_the_average_in_eval_mode_without_gradients():
    module, seen = net(), []

    def validate():
        seen.append((module.training, torch.is_grad_enabled(), parameters_of(module)["layers.0.weight"]))
        return 0.0

    train(net_loss(module), module, pairs(), Recipe(epochs=2, ema=0.99, lr=0.1), validate=validate)
    assert [s[:2] for s in seen] == [(False, False)] * 2
    assert np.array_equal(seen[-1][2], parameters_of(module)["layers.0.weight"])
    assert not module.training


def test_the_best_needs_a_validation():
    weights = start()
    with pytest.raises(WrongInput, match="needs validate="):
        train(squares(weights), [weights], pairs(), Recipe(steps=1, keep="best"))
    with pytest.raises(WrongInput, match="got nan after step 6"):
        train(squares(weights), [weights], pairs(), Recipe(epochs=1), validate=lambda: math.nan)


# --- random numbers and modes -----------------------------------------------------------------------------------------


def test_the_users_random_numbers_threads_and_modes_are_untouched():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        module, used = net(), set()

        def loss(batch):
            used.add(torch.get_num_threads())
            return net_loss(module)(batch)

        with torch.no_grad():
            train(loss, module, pairs(), Recipe(epochs=1))
        assert used == {min(threads + 1, cores())}
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(3), expected)
    assert not module.training


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    def result(seed: int):
        module = net()
        train(net_loss(module), module, pairs(), Recipe(epochs=2, seed=seed))
        return parameters_of(module)

    first, again, other = result(0), result(0), result(1)
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert any(not np.array_equal(first[k], other[k]) for k in first)


def test_frozen_parameters_stay():
    module = net()
    module.layers[0].requires_grad_(False)
    before = parameters_of(module)
    train(net_loss(module), module, pairs(), Recipe(epochs=1, weight_decay=0.1))
    after = parameters_of(module)
    assert np.array_equal(before["layers.0.weight"], after["layers.0.weight"])
    assert not np.array_equal(before["layers.3.weight"], after["layers.3.weight"])


# --- batches ----------------------------------------------------------------------------------------------------------


def test_every_item_once_per_epoch_in_an_order_of_its_own():
    order = Shuffled(range(10), 4, lambda i, rng: np.int64(i), seed=3)
    epochs = [[list(b) for b in order(e)] for e in range(3)]
    assert len(order) == 3
    assert all([len(b) for b in e] == [4, 4, 2] for e in epochs)
    assert all(sorted(i for b in e for i in b) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [list(b) for b in order(1)] == epochs[1]
    assert [list(b) for b in order(1, start=1)] == epochs[1][1:]
    dropping = Shuffled(range(10), 4, lambda i, rng: np.int64(i), drop_last=True)
    assert (len(dropping), [len(b) for b in dropping(0)]) == (2, [4, 4])


def test_draws_with_replacement_and_random_loading_depend_on_the_place_alone():
    order = Shuffled(range(50), 8, lambda i, rng: (np.int64(i), rng.random()), seed=1, replace=True)
    drawn = np.concatenate([b[0] for b in order(0)])
    assert len(drawn) == 50
    assert len(set(drawn)) < 50
    noise = np.concatenate([b[1] for b in order(0)])
    assert len(set(noise)) == 50
    assert np.array_equal(np.concatenate([b[1] for b in order(0, start=3)]), noise[24:])
    wide = Shuffled(range(50), 25, order.load, seed=1, replace=True)
    assert np.array_equal(np.concatenate([b[1] for b in wide(0)]), noise)


# --- checkpoints ------------------------------------------------------------------------------------------------------

RESUMED = [
    Recipe(epochs=4, lr=0.02, checkpoint_minutes=0),
    Recipe(epochs=4, optimiser="sgd", lr=0.02, schedule="cosine", warmup=3, ema=0.9, checkpoint_minutes=0),
    Recipe(epochs=4, optimiser="adamw", accumulate=2, clip=0.5, precision="bf16", checkpoint_minutes=0),
    Recipe(steps=23, keep="best", ema=0.8, patience=50, precision="fp16", checkpoint_minutes=0),
    Recipe(epochs=4, checkpoint_minutes=60, checkpoint_epochs=True),
]


@pytest.mark.parametrize("recipe", RESUMED, ids=["adam", "sgd", "adamw", "best", "epochs"])
def test_an_interrupted_training_ends_bit_for_bit_where_an_uninterrupted_one_does(recipe, tmp_path):
    def run(module, loss, folder=None):
        validate = None
        if recipe.keep == "best":
            x, y = map(torch.as_tensor, (X, Y))
            validate = lambda: -float(((module(x) - y) ** 2).mean())  # noqa: E731
        groups = [Group(module.layers[0], lr=0.01), Group(module.layers[1:])]
        return train(loss, groups, pairs(), recipe, folder=folder, validate=validate)

    whole = net()
    expected = run(whole, net_loss(whole))
    for after in (3, 8, 7):  # in the middle of epochs
        module = net()
        with pytest.raises(Stop):
            run(module, interrupted(net_loss(module), after), tmp_path)
    module = Net()  # other tensors: all must come from the checkpoint
    done = run(module, net_loss(module), tmp_path)
    expected_state, state = parameters_of(whole), parameters_of(module)
    assert all(np.array_equal(expected_state[k], state[k]) for k in state)
    assert (done.steps, done.scores, done.best_step) == (expected.steps, expected.scores, expected.best_step)
    assert done.loss == expected.loss
    again = Net()  # a complete one is only read
    run(again, interrupted(net_loss(again), 0), tmp_path)
    assert all(np.array_equal(expected_state[k], v) for k, v in parameters_of(again).items())
    assert not again.layers[1].training


def pressing(loss, *steps: int):
    """Ctrl-C in the middle of these steps, counted from 0."""
    calls = iter(range(10**9))

    def wrapped(batch):
        if next(calls) in steps:
            signal.raise_signal(signal.SIGINT)
        return loss(batch)

    return wrapped


def test_ctrl_c_waits_for_the_end_of_the_step_and_loses_nothing(tmp_path):
    recipe = Recipe(epochs=4, lr=0.02, ema=0.9)  # no time for a checkpoint by the clock
    whole, module = net(), net()
    train(net_loss(whole), whole, pairs(), recipe)
    with pytest.raises(KeyboardInterrupt):
        train(pressing(net_loss(module), 7), module, pairs(), recipe, folder=tmp_path)
    assert _checkpoint.read(tmp_path)[1]["step"] == 8
    with pytest.raises(KeyboardInterrupt):  # pressed in the last step: that training is over, and its caller is stopped
        train(pressing(net_loss(module), 15), module, pairs(), recipe, folder=tmp_path)
    assert _checkpoint.read(tmp_path)[1]["done"]
    resumed = Net()
    train(net_loss(resumed), resumed, pairs(), recipe, folder=tmp_path)
    assert all(np.array_equal(v, parameters_of(resumed)[k]) for k, v in parameters_of(whole).items())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_and_one_without_a_folder_do_not_wait(tmp_path):
    weights, finished = start(), []

    def step(batch):
        signal.raise_signal(signal.SIGINT)
        finished.append("first")
        signal.raise_signal(signal.SIGINT)
        finished.append("second")
        return squares(weights)(batch)

    with pytest.raises(KeyboardInterrupt):
        train(step, [weights], pairs(), Recipe(steps=9), folder=tmp_path)
    assert finished == ["first"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        train(step, [weights], pairs(), Recipe(steps=9))
    assert finished == ["first"]


def test_a_handler_of_the_users_is_left_alone(tmp_path):
    weights, told = start(), []
    before = signal.signal(signal.SIGINT, lambda *args: told.append("theirs"))
    try:
        done = train(pressing(squares(weights), 1), [weights], pairs(), Recipe(steps=3), folder=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (told, done.steps) == (["theirs"], 3)


def test_a_resumed_epoch_of_hand_made_batches_goes_on_in_the_middle(tmp_path):
    def by_hand(epoch):
        return (b for b in list(pairs(seed=2)(epoch)))

    recipe = Recipe(epochs=3, lr=0.1, checkpoint_minutes=0)
    whole, weights = start(), start()
    train(squares(whole), [whole], by_hand, recipe, batches_per_epoch=6)
    with pytest.raises(Stop):
        train(interrupted(squares(weights), 8), [weights], by_hand, recipe, batches_per_epoch=6, folder=tmp_path)
    weights = start()
    train(squares(weights), [weights], by_hand, recipe, batches_per_epoch=6, folder=tmp_path)
    assert torch.equal(weights, whole)


@pytest.mark.parametrize(
    ("recipe", "tensors", "data", "message"),
    [
        (Recipe(steps=3, lr=0.2), lambda: [start()], "", r"recipe lr: 0\.1 there, 0\.2 here"),
        (Recipe(steps=3, lr=0.1, clip=1.0), lambda: [start()], "", "recipe clip: None there"),
        (Recipe(steps=3, lr=0.1), lambda: [torch.zeros(4, requires_grad=True)], "", r"shape of 0: \[3\] there"),
        (Recipe(steps=3, lr=0.1), lambda: {"w": start()}, "", "shape of w: None there"),
        (Recipe(steps=3, lr=0.1), lambda: [start()], "other", "data:  there, other here"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(recipe, tensors, data, message, tmp_path):
    weights = start()
    train(squares(weights), [weights], pairs(), Recipe(steps=3, lr=0.1), folder=tmp_path)
    with pytest.raises(WrongInput, match=message):
        train(lambda batch: None, tensors(), pairs(), recipe, folder=tmp_path, data=data)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    weights = start()
    train(squares(weights), [weights], pairs(), Recipe(steps=3), folder=tmp_path)
    path = tmp_path / _checkpoint.NAME
    tensors, facts = _checkpoint.read(tmp_path)
    _checkpoint.write(tmp_path, {k: v for k, v in tensors.items() if k != "now.0"}, facts)
    with pytest.raises(WrongInput, match="incomplete"):
        train(squares(weights), [weights], pairs(), Recipe(steps=3), folder=tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WrongInput, match="damaged"):
        train(squares(weights), [weights], pairs(), Recipe(steps=3), folder=tmp_path)


def test_a_checkpoint_is_one_file_of_tensors_and_json(tmp_path):
    from safetensors import safe_open

    module = net()
    with pytest.raises(Stop):
        train(interrupted(net_loss(module), 5), module, pairs(), Recipe(steps=9, checkpoint_minutes=0), folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [_checkpoint.NAME]
    with safe_open(tmp_path / _checkpoint.NAME, "np") as file:
        assert json.loads(file.metadata()["training"])["step"] == 5
        assert "optimiser.layers.0.weight.exp_avg" in set(file.keys())
        assert "now.layers.1.running_mean" in set(file.keys())


def test_a_full_disk_is_one_warning_and_training_goes_on(tmp_path, monkeypatch, caplog):
    import safetensors.torch

    def full(*args):
        raise OSError(28, "No space left on device")

    weights, reference = start(), start()
    recipe = Recipe(steps=6, checkpoint_minutes=0)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with caplog.at_level(logging.WARNING):
        train(squares(weights), [weights], pairs(), recipe, folder=tmp_path)
    assert len(caplog.records) == 1
    assert "no space left" in caplog.text
    train(squares(reference), [reference], pairs(), recipe)
    assert torch.equal(weights, reference)
    assert not list(tmp_path.iterdir())


def test_safetensors_own_refusal_is_a_sentence_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    import safetensors.torch
    from safetensors import SafetensorError

    _checkpoint.write(tmp_path, {"a": torch.ones(2)}, {"step": 1})

    def half(tensors, path, header):
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(CannotWrite, match="No space left"):
        _checkpoint.write(tmp_path, {"a": torch.zeros(2)}, {"step": 2})
    assert _checkpoint.read(tmp_path)[1]["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [_checkpoint.NAME]


# --- who watches ------------------------------------------------------------------------------------------------------


def test_a_training_is_quiet_unless_watched(capfd, tmp_path):
    told = []
    weights = start()
    train(squares(weights), [weights], pairs(), Recipe(steps=5))
    with watching(lambda *news: told.append(news), tmp_path):
        for steps in (5, 4):
            weights = start()
            train(lambda b, w=weights: (squares(w)(b), {"size": 3.0}), [weights], pairs(), Recipe(steps=steps))
    train(squares(weights), [weights], pairs(), Recipe(steps=5))
    assert capfd.readouterr() == ("", "")
    assert [(s, t) for s, t, _ in told] == [(s, n) for n in (5, 4) for s in range(n + 1)]
    assert told[0][2] == {}
    assert set(told[2][2]) == {"loss", "rate", "size"}
    assert set(told[5][2]) == {"loss", "rate", "size", "left"}
    assert told[5][2]["left"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


def test_the_time_left_is_told_early_and_the_first_step_does_not_spoil_it(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(train_module.time, "monotonic", lambda: clock.now)
    weights = start()

    def told(first: float, others: float) -> list[float | None]:
        """What is said to be left after each of five steps that take so many seconds."""
        costs, left = iter([first, *[others] * 4]), []

        def loss(batch):
            clock.now += next(costs)
            return squares(weights)(batch)

        report = lambda step, total, figures: left.append(figures.get("left"))  # noqa: E731
        train(loss, [weights], pairs(), Recipe(steps=5), report=report)
        return left[1:]

    assert told(10.0, 1.0)[0] is None
    assert told(10.0, 1.0)[1:] == pytest.approx([3, 2, 1, 0])  # slow: from the second step on
    assert told(0.5, 0.1)[:2] == [None, None]
    assert told(0.5, 0.1)[2:] == pytest.approx([0.2, 0.1, 0])


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_survive_as_arrays():
    module = net()
    train(net_loss(module), module, pairs(), Recipe(steps=5))
    arrays = parameters_of(module)
    assert {type(a) for a in arrays.values()} == {np.ndarray}
    other = load_parameters(Net(), arrays)
    x = torch.as_tensor(X)
    assert torch.equal(other(x), module(x))
    assert not other.training
    assert not any(p.requires_grad for p in other.parameters())
    module.layers[0].weight.data += 1  # copies
    assert not np.array_equal(arrays["layers.0.weight"], parameters_of(module)["layers.0.weight"])
    assert parameters_of(net().bfloat16())["layers.0.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("layers.3.bias"), "layers.3.bias is missing"),
        (lambda a: a.update(extra=np.zeros(1)), "extra is unknown"),
        (lambda a: a.update({"layers.3.bias": np.zeros(2)}), r"layers.3.bias has shape \(2,\) instead of \(1,\)"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change, message):
    arrays = parameters_of(net())
    change(arrays)
    with pytest.raises(WrongInput, match=message):
        load_parameters(Net(), arrays)


def test_devices_are_checked():
    assert training_device("cpu").type == "cpu"
    with pytest.raises(WrongInput, match="no device"):
        training_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(WrongInput, match="sees no GPU"):
            training_device("cuda")


def test_without_torch_one_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from anomalens.parts.train import Recipe, train\n"
        "train(None, None, None, Recipe(steps=1))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra: this needs torch" in run.stderr
    assert "pip install 'anomalens[torch]'" in run.stderr


# --- several processes ------------------------------------------------------------------------------------------------


def test_shares_are_equal_and_interleaved(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("RANK", str(rank))
        shares.append(list(share(range(8))))
    assert shares == [[0, 3], [1, 4], [2, 5]]
    order = Shuffled(range(7), 3, lambda i, rng: np.int64(i))  # the last batch of one cannot be shared by three
    assert [len(b) for b in order(0)] == [1, 1]
    assert len(order) == 2
    assert len(Shuffled(range(7), 2, order.load)) == 0


def process(rank: int, port: int, folder: str) -> None:
    """One of two: trains on its half of every batch."""
    os.environ.update(
        WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1"
    )
    out, told = {}, []
    weights, idle, sometimes = start(), start(), start()
    if rank == 1:
        weights.data += 5  # the first process decides

    def loss(batch):
        value = squares(weights)(batch)
        return value + sometimes.sum() if rank == 0 else value

    recipe = Recipe(epochs=3, lr=0.1, clip=1.0, checkpoint_minutes=0)
    done = train(
        loss, {"w": weights, "idle": idle, "s": sometimes}, pairs(8), recipe, folder=folder,
        report=lambda step, total, figures: told.append(step),
    )  # fmt: skip
    out["w"], out["idle"], out["s"] = (t.detach().numpy() for t in (weights, idle, sometimes))
    out["loss"], out["told"] = np.array(done.loss), np.array(len(told))
    module = net()
    train(net_loss(module), module, pairs(8), Recipe(epochs=1, keep="best"), validate=lambda: float(rank))
    out |= {f"net.{k}": v for k, v in parameters_of(module).items()}
    np.savez(Path(folder) / f"rank{rank}.npz", **out)


def test_two_processes_with_half_batches_equal_one_with_whole_batches(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=process, args=(rank, port, str(tmp_path)), daemon=True) for rank in range(2)]
    for one in running:
        one.start()
    for one in running:
        one.join(600)
    assert [one.exitcode for one in running] == [0, 0]
    first, second = (np.load(tmp_path / f"rank{rank}.npz") for rank in range(2))
    assert all(np.array_equal(first[k], second[k]) for k in first.files if k != "told")
    weights, idle, sometimes = start(), start(), start()
    done = train(
        lambda batch: squares(weights)(batch) + sometimes.sum() / 2, [weights, idle, sometimes], pairs(8),
        Recipe(epochs=3, lr=0.1, clip=1.0),
    )  # fmt: skip
    assert np.allclose(first["w"], weights.detach().numpy(), atol=1e-6)
    assert np.allclose(first["s"], sometimes.detach().numpy(), atol=1e-6)
    assert np.array_equal(first["idle"], np.zeros(3))
    assert float(first["loss"]) == pytest.approx(done.loss, abs=1e-6)
    assert (int(first["told"]), int(second["told"])) == (10, 0)
    assert _checkpoint.read(tmp_path)[1]["done"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_training_on_a_gpu_resumes(precision, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = training_device("cuda")
    before = torch.cuda.get_rng_state()

    def fresh():
        module = net().to(device)

        def loss(batch):
            x, y = (torch.as_tensor(v, device=device) for v in batch)
            return ((module(x + 0.1 * torch.randn_like(x)).float() - y) ** 2).mean()

        return module, loss

    recipe = Recipe(epochs=3, precision=precision, ema=0.9, checkpoint_minutes=0)
    whole, loss = fresh()
    train(loss, whole, pairs(), recipe)
    module, loss = fresh()
    with pytest.raises(Stop):
        train(interrupted(loss, 8), module, pairs(), recipe, folder=tmp_path)
    module, loss = fresh()
    train(loss, module, pairs(), recipe, folder=tmp_path)
    for name, array in parameters_of(whole).items():
        assert np.allclose(parameters_of(module)[name], array, atol=1e-4), name
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_half_precision_says_nothing_of_its_own():
    weights = start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(squares(weights), [weights], pairs(), Recipe(steps=2, precision="bf16"))
