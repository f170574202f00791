from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from anomalens.apps import progress
from anomalens.apps.progress import Training, Watch, shown_training


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(training: Training, clock: SimpleNamespace, total: int, per_step: float, first: int = 0) -> None:
    training(first, total, {})
    for step in range(first + 1, total + 1):
        clock.now += per_step
        figures = {"loss": 1 / step, "rate": 1 / per_step, "normal": 0.25}
        if step - first >= 3:
            figures["left"] = (total - step) * per_step
        training(step, total, figures)


def test_elsewhere_a_training_is_a_line_every_ten_seconds(clock, capsys):
    told(Training(), clock, total=100, per_step=0.25)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "training: 100 steps, about 25 s",
        "training: step 43 of 100, loss 0.02326, normal 0.25, 4 steps/s, 14 s left",
        "training: step 83 of 100, loss 0.01205, normal 0.25, 4 steps/s, 4 s left",
        "training: 100 steps, loss 0.01, took 25 s",
    ]


def test_a_short_training_is_not_mentioned(clock, capsys):
    told(Training(), clock, total=100, per_step=0.001)
    assert capsys.readouterr().err == ""


def test_a_continued_training_says_where(clock, capsys):
    told(Training(), clock, total=100, per_step=100, first=50)
    assert capsys.readouterr().err.splitlines()[:2] == [
        "training goes on at step 50 of 100",
        "training: 50 more steps, about 83 min",
    ]


def test_on_a_terminal_a_training_is_a_bar_with_loss_rate_and_time_left(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    training = Training()
    training(0, 1000, {})
    training._bar.refresh()
    assert "timing the first steps" in terminal.getvalue()
    training(400, 1000, {"loss": 0.5, "rate": 2.0, "left": 300.0})
    training._bar.refresh()
    training.close()
    assert "loss 0.5, 2 steps/s, 5 min left" in terminal.getvalue()
    assert "400/1000" in terminal.getvalue()


def test_a_pass_over_samples_inside_a_training_does_without_a_second_bar_or_has_its_own(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with shown_training():
        progress._live_bar("text")
        assert list(Watch()([], "learning", 0)) == []


def test_a_training_is_shown_in_the_block_and_not_after_it(clock, capsys):
    torch = pytest.importorskip("torch")
    from anomalens.parts.train import Recipe, train

    weights = torch.zeros(1, requires_grad=True)

    def loss(batch):
        clock.now += 1
        return weights.square().sum()

    for quiet in (False, True):
        with shown_training(quiet):
            train(loss, [weights], lambda epoch: [0], Recipe(epochs=4))
        assert bool(capsys.readouterr().err) is not quiet
    train(loss, [weights], lambda epoch: [0], Recipe(epochs=4))
    assert capsys.readouterr().err == ""
