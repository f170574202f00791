"""Customizable-VLM: what is sent, what is understood, what is kept; with models that see, and models that lie."""

from __future__ import annotations

import itertools
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import anomalens as al
from anomalens.detectors.customizable_vlm import CustomizableVLM, explain
from anomalens.errors import Unreadable, WrongInput
from anomalens.images import read_image
from anomalens.reasoning import prompts
from anomalens.reasoning.endpoint import Answer, Callable_, Picture
from anomalens.reasoning.pictures import clips
from anomalens.types import Prediction, Reason, Region, Sample, View
from tests.support.answers import NOISE
from tests.support.chat_server import Received, ScriptedChatServer, Step
from tests.support.oracle import PixelOracle

NORMAL = '{"reasoning": "fine", "anomalous": false, "confidence": 90, "defects": []}'
BAD = (
    '{"reasoning": "broken", "anomalous": true, "confidence": 80, '
    '"defects": [{"type": "crack", "where": "left", "box": null}]}'
)


def picture(index: int, spot: int = 0, size: int = 64) -> np.ndarray:
    """Soft grey noise, with a red square of `spot` pixels."""
    values = np.random.default_rng(index).integers(90, 140, (size, size, 3)).astype(np.uint8)
    values[8 : 8 + spot, 16 : 16 + spot] = (220, 30, 30)
    return values


def smooth(spot: int) -> np.ndarray:
    """The same on an even ground, which is encoded faster."""
    values = np.full((64, 64, 3), 120, np.uint8)
    values[8 : 8 + spot, 16 : 16 + spot] = (220, 30, 30)
    return values


def sample(id: str, label: int | None = None, category: str = "", defect: str = "", **views) -> Sample:
    held = {name: View(name, lambda v=v: v) for name, v in views.items()}
    return Sample(id, held, category, label=label, defect=defect)


def pictures(count: int = 6) -> list[Sample]:
    """Every second one with a spot that grows."""
    return [sample(str(i), i % 2, image=picture(i, 4 * i if i % 2 else 0)) for i in range(count)]


def vlm(function, **settings) -> CustomizableVLM:
    return al.create("vlm", model=Callable_(function), **settings)


class Recorder:
    """A model that says one thing, or a script by turns, and keeps what it was asked."""

    name = "recorder"

    def __init__(self, *script: str | Answer) -> None:
        self.script, self.asked, self.options = script, [], []

    def ask(self, messages, **options) -> Answer:
        self.asked.append(list(messages))
        self.options.append(options)
        said = self.script[min(len(self.asked), len(self.script)) - 1]
        return said if isinstance(said, Answer) else Answer(said)

    @property
    def text(self) -> str:
        return "\n".join(m.text for m in self.asked[-1])


@pytest.fixture
def server() -> Iterator[ScriptedChatServer]:
    oracle = PixelOracle()
    with ScriptedChatServer(oracle.serve) as running:
        yield running


def serve(server: ScriptedChatServer, **settings) -> CustomizableVLM:
    return al.create("vlm", **{"base_url": server.url, "model": "m", "cache": "", "retries": 0, **settings})


# 1. End to end, for every kind of data.


def cloud(spot: int) -> tuple[np.ndarray, np.ndarray]:
    """An organised plane, and its colours."""
    y, x = np.mgrid[1:-1:64j, -1:1:64j]
    colours = np.full((64, 64, 3), 200, np.uint8)
    colours[8 : 8 + spot, 16 : 16 + spot] = (250, 20, 20)
    return np.stack([x, y, 0.1 * x], -1), colours


def case(kind: str, index: int, spot: int) -> Sample:
    label = int(spot > 0)
    id = f"{kind}/{index}"
    if kind == "image":
        return sample(id, label, image=picture(index, spot))
    if kind == "points":
        points, colours = cloud(spot)
        return sample(id, label, points=points, image=colours)
    if kind == "video":
        frames = {f"frame_{i}": smooth(spot if i > 10 else 0) for i in range(20)}
        return sample(id, label, **frames)
    if kind == "lights":
        return sample(id, label, **{f"light_{k}": smooth(spot if k == 2 else 0) for k in range(4)})
    series = np.full((120, 2), np.nan)
    series[:, 0] = np.sin(np.arange(120) / 9)
    series[40 : 40 + spot, 1] = 1.0  # the second curve is drawn in red
    return sample(id, label, series=series)


@pytest.mark.parametrize("kind", ["image", "points", "video", "lights", "series"])
def test_every_kind_of_data_is_judged_rightly(kind):
    samples = [case(kind, i, spot) for i, spot in enumerate((0, 10, 0, 18, 0, 30))]
    detector = vlm(PixelOracle(), surface="rgb", concurrency=3)
    predictions = list(detector.predict(iter(samples)))
    assert [p.id for p in predictions] == [s.id for s in samples]
    assert [p.verdict for p in predictions] == ["reject" if s.label else "pass" for s in samples]
    scores = [p.score for p in predictions]
    assert scores[1] < scores[3] < scores[5]
    assert max(scores[::2]) < min(scores[1::2])
    for s, p in zip(samples, predictions, strict=True):
        assert p.reasons[0] == Reason("a spot" if s.label else "nothing stands out", "function")
        grid = {"image": (64, 64), "points": (64, 64), "lights": (64, 64)}.get(kind)
        assert (None if p.map is None else p.map.shape) == grid
        if grid and s.label:
            truth = np.zeros(grid, bool)
            spot = (0, 10, 0, 18, 0, 30)[int(s.id[-1])]
            truth[8 : 8 + spot, 16 : 16 + spot] = True
            found = p.map > 0
            assert (found & truth).sum() / (found | truth).sum() > 0.6
            assert p.map.max() == np.float32(p.score)
            x0, _, _, y1 = p.reasons[1].box
            assert abs(x0 - 16) <= 3
            assert kind == "points" or abs(y1 - 8 - spot) <= 3  # a box on a turned view is wider than the spot
        elif grid:
            assert not p.map.any()
    shares = [dict(r.shares) for r in predictions[5].reasons if r.shares]  # which view the page is to show
    frames = {"frame_12": 0.25, "frame_14": 0.25, "frame_16": 0.25, "frame_18": 0.25}
    assert shares == {"video": [frames], "lights": [{"light_2": 1.0}]}.get(kind, [])
    bad = predictions[5].reasons[1]
    assert {"video": "frame", "series": "from", "points": "view", "lights": "light 2", "image": "red"}[kind] in bad.text


def test_real_frames_reach_the_server(shared, server):
    """Acceptance on real input: windows of the pedestrian video, as the server really receives them."""
    folder = shared / "data" / "pedestrian_video" / "test" / "02"
    files = sorted(folder.glob("*.jpg"))[80:112]
    frames = [Sample(f.name, {"image": View("image", lambda f=f: read_image(f), str(f))}) for f in files]
    windows = clips(frames)
    good = sorted((shared / "data" / "pedestrian_video" / "train" / "12").glob("*.jpg"))[:16]
    reference = clips([Sample(f"train/{f.name}", {"image": View("image", lambda f=f: read_image(f))}) for f in good])
    detector = serve(server, fps=10.0, object="walkway", rules=("Only people on foot.",)).fit(reference)
    predictions = list(detector.predict(windows))
    assert len(predictions) == len(windows) == 3
    assert {p.verdict for p in predictions} == {"pass"}  # grey frames hold nothing red
    for request in server.requests:
        assert [mime for mime, _ in request.pictures] == ["image/png"] * 2
        assert all(picture.size == (1024, 685) for _, picture in request.pictures)  # 9 frames of 3:2, reduced
        said = "\n".join(request.texts)
        assert "9 frames of one video" in said
        assert "walkway" in said
        assert "1. Only people on foot." in said
    first = np.asarray(server.requests[0].pictures[1][1].convert("L"), float)
    assert first[:220, :330].std() > 5  # a real scene, not an empty tile


def test_a_drawn_cloud_reaches_the_server(server):
    points, colours = cloud(20)
    detector = serve(server, surface="rgb")
    (prediction,) = detector.predict([sample("scan", points=points, image=colours)])
    assert prediction.verdict == "reject"
    (request,) = server.requests
    assert [p.size for _, p in request.pictures] == [(1024, 1024)]
    assert "from 9 sides" in "\n".join(request.texts)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "rendered without its real colours from 9 sides. The views are numbered"),
        ({"surface": "rgb"}, "rendered in its real colours from 9 sides."),
        ({"surface": "depth", "sides": 1}, "rendered as depth, the nearer the brighter, from the front. White is"),
    ],
)
def test_what_is_said_of_a_rendering_is_true(settings, words):
    model = Recorder(NORMAL)
    points, colours = cloud(0)
    list(al.create("vlm", model=model, **settings).predict([sample("scan", points=points, image=colours)]))
    assert words in " ".join(model.text.split())


# 2. Noise.


@pytest.mark.parametrize("name", NOISE)
def test_no_answer_is_dropped_or_raises(name):
    text, expected = NOISE[name]
    results = list(vlm(lambda messages: text).results(pictures(3)))
    assert [r.id for r in results] == ["0", "1", "2"]
    for result in results:
        if isinstance(expected, bool):
            assert (result.status, result.anomalous) == ("ok", expected)
        else:
            assert (result.status, result.anomalous, result.score) == (expected, None, None)
            assert result.calls == (2 if expected == "unparsable" else 1)


def test_content_as_a_list_of_parts():
    with ScriptedChatServer(
        [Step([{"type": "text", "text": BAD[:40]}, {"type": "text", "text": BAD[40:]}])] * 2
    ) as lists:
        (result,) = serve(lists).results(pictures(1))
        assert result.anomalous is True


# 3. What is sent.

PARTS = {
    "use_task": "Task: judge one sample",
    "use_context": "What the sample is called: bolt plate",
    "use_rules": "1. Two washers.\n  2. One screw.",
    "use_references": "Reference 1, normal:",
}


@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=4)))
def test_exactly_the_enabled_prompts_are_sent(on):
    switches = dict(zip(PARTS, on, strict=True))
    model = Recorder(NORMAL)
    detector = al.create(
        "vlm", model=model, object="bolt_plate", context="Seen from above.", rules="Two washers.\n\nOne screw.",
        defects=("scratch",), **switches,
    )  # fmt: skip
    detector.fit(pictures(1))
    list(detector.predict([sample("x", image=picture(7))]))
    said = " ".join(model.text.split())
    for switch, enabled in switches.items():
        assert (" ".join(PARTS[switch].split()) in said) == enabled
    assert ("Seen from above." in said) == switches["use_context"]
    assert ("1. scratch" in said) == switches["use_rules"]
    assert ("Compare the sample under test with them" in said) == switches["use_references"]
    images = [p for m in model.asked[0] for p in m.parts if isinstance(p, Picture)]
    assert len(images) == 1 + switches["use_references"]
    assert "Answer with one JSON object" in said
    assert "{" not in said.replace("{" + said.split("{", 1)[1].split("}]}")[0] + "}]}", "")  # nothing left to fill in


@pytest.mark.parametrize(("level", "named", "expert"), [("task", 0, 0), ("class", 1, 0), ("expert", 1, 1)])
def test_levels_of_language(level, named, expert):
    model = Recorder(NORMAL)
    list(
        al.create("vlm", model=model, object="plate", context="From above.", rules="Flat.", level=level).predict(
            pictures(1)
        )
    )
    assert ("called: plate" in model.text, "From above" in model.text, "1. Flat" in model.text) == (
        named,
        expert,
        expert,
    )
    assert "Task:" in model.text


def test_the_order_of_text_and_pictures():
    def kinds(order: str) -> list[str]:
        model = Recorder(NORMAL)
        detector = al.create("vlm", model=model, order=order, references=2).fit(pictures(5)[::2])
        list(detector.predict([sample("x", image=picture(9))]))
        (message,) = model.asked[0]
        return ["picture" if isinstance(p, Picture) else p.split("\n")[0][:12] for p in message.parts]

    captions = ["Reference 1,", "picture", "Reference 2,", "picture", "The sample u", "picture"]
    assert kinds("text_first") == ["Task: judge ", *captions, "Answer with "]
    assert kinds("images_first") == [*captions, "Task: judge ", "Answer with "]


def test_pictures_arrive_as_they_were(server):
    big = picture(3, 20, size=1500)
    list(serve(server, longest=600).fit([sample("r", image=picture(1))]).predict([sample("x", image=big)]))
    (request,) = server.requests
    (mime, reference), (_, test) = request.pictures
    assert mime == "image/png"
    assert np.array_equal(np.asarray(reference), picture(1))
    assert test.size == (600, 600)
    content = request.json["messages"][0]["content"]
    at = next(i for i, p in enumerate(content) if p.get("text") == "The sample under test:")
    assert content[at + 1]["type"] == "image_url"


def test_parts_are_enlarged_beside_the_picture():
    model = Recorder(NORMAL)
    list(al.create("vlm", model=model, tiles=(2, 2)).predict(pictures(1)))
    images = [p for p in model.asked[0][0].parts if isinstance(p, Picture)]
    assert len(images) == 5
    assert "part 3 of 4 enlarged (row 2, column 1)" in model.text


def test_language_and_braces_in_the_users_words():
    model = Recorder(NORMAL)
    detector = al.create("vlm", model=model, object="{rules}", rules=("keep {object} and {x}",), language="German")
    list(detector.predict(pictures(1)))
    assert "called: {rules}" in model.text
    assert "keep {object} and {x}" in model.text
    assert "in this language: German" in model.text


def test_filling_in_is_one_pass():
    assert prompts.fill("{a} {b} {c} {", a="{b}", b="2") == "{b} 2 {c} {"


# References.


def test_references_come_from_fit_alone_and_never_are_the_sample_itself():
    train = pictures(5)[::2]
    detector = vlm(lambda messages: NORMAL, references=2).fit(train)
    assert detector.state() == "Customizable-VLM keeps as references: 2 normal."
    model = Recorder(NORMAL)
    detector.model = model
    with pytest.warns(UserWarning, match="the same picture as the reference 0"):
        list(detector.predict([sample("copy", image=picture(0))]))
    images = [p for p in model.asked[0][0].parts if isinstance(p, Picture)]
    assert len(images) == 2
    assert images[0].data != images[1].data
    with pytest.raises(WrongInput, match="labelled anomalous"):
        detector.fit(pictures(2))


def test_defects_can_be_shown_as_examples():
    model = Recorder(NORMAL)
    bad = sample("bad", 1, defect="deep_scratch", image=picture(5, 9))
    list(al.create("vlm", model=model, abnormal=1).fit([*pictures(1), bad]).predict([sample("x", image=picture(9))]))
    assert "Reference 1, normal:" in model.text
    assert "Reference 2, abnormal (deep scratch):" in model.text


def shown_reference(detector: CustomizableVLM, test: np.ndarray) -> np.ndarray:
    import io

    from PIL import Image

    model = Recorder(NORMAL)
    detector.model = model
    list(detector.predict([sample("x", image=test)]))
    first = next(p for p in model.asked[0][0].parts if isinstance(p, Picture))
    return np.asarray(Image.open(io.BytesIO(first.data)))


def test_the_nearest_reference():
    colours = [np.full((40, 40, 3), c, np.uint8) for c in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    detector = vlm(lambda m: NORMAL, choose="nearest").fit([sample(str(i), image=c) for i, c in enumerate(colours)])
    assert np.array_equal(shown_reference(detector, np.full((40, 40, 3), (10, 20, 180), np.uint8)), colours[2])
    assert np.array_equal(shown_reference(detector, np.full((40, 40, 3), (20, 180, 20), np.uint8)), colours[1])


def test_drawn_references_depend_on_the_seed_alone():
    many = [sample(str(i), image=picture(i)) for i in range(20)]
    ids = {
        seed: vlm(lambda m: NORMAL, choose="random", seed=seed).fit(many).kept[""]["normal"][0]["id"]
        for seed in range(8)
    }
    assert len(set(ids.values())) > 2
    assert vlm(lambda m: NORMAL, choose="random", seed=3).fit(many).kept[""]["normal"][0]["id"] == ids[3]
    assert vlm(lambda m: NORMAL).fit(many).kept[""]["normal"][0]["id"] == "0"


def test_each_category_has_its_own_references():
    train = [sample("a", category="nut", image=picture(0)), sample("b", category="pill", image=picture(1))]
    detector = vlm(lambda m: NORMAL).fit(train)
    model = Recorder(NORMAL)
    detector.model = model
    list(detector.predict([sample("x", category="pill", image=picture(5))]))
    (first, _) = [p for p in model.asked[0][0].parts if isinstance(p, Picture)]
    assert first == Picture.of(picture(1))
    assert "called: pill" in model.text
    with pytest.warns(UserWarning, match=r"category 'rope' are judged without references.* of nut, pill"):
        list(detector.predict([sample("y", category="rope", image=picture(5))]))
    assert len([p for p in model.asked[1][0].parts if isinstance(p, Picture)]) == 1
    list(detector.predict([sample("z", category="pill/12", image=picture(5))]))
    assert "called: pill." in model.text  # a number of a group is no part of the name


def test_saved_without_model_and_key(tmp_path, monkeypatch, server):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    detector = serve(server, key_env="MY_KEY", references=1, cache=str(tmp_path / "cache")).fit(pictures(1))
    before = list(detector.predict(pictures(4)))
    al.save(detector, tmp_path / "model")
    loaded = al.load(tmp_path / "model")
    after = list(loaded.predict(pictures(4)))
    assert [p.score for p in after] == [p.score for p in before]
    assert server.requests[0].headers["authorization"] == "Bearer sk-very-secret"
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"very-secret" not in file.read_bytes()
    assert "very-secret" not in repr(detector)
    al.save(vlm(lambda m: NORMAL).fit(pictures(1)), tmp_path / "object")
    with pytest.raises(WrongInput, match="base_url"):
        list(al.load(tmp_path / "object").predict(pictures(1)))
    assert len(list(al.load(tmp_path / "object", model=Callable_(lambda m: NORMAL)).predict(pictures(1)))) == 1


# Scores.


def answer_with_tokens(value: str, top: dict[str, float]) -> Step:
    text = '{"reasoning": "x", "anomalous": ' + value + ', "confidence": 55}'
    head, tail = text.split(value, 1)
    entries = [
        {"token": head, "logprob": -0.01, "top_logprobs": []},
        {"token": value, "logprob": math.log(top[value]),
         "top_logprobs": [{"token": k, "logprob": math.log(v)} for k, v in top.items()]},
        {"token": tail, "logprob": -0.01, "top_logprobs": []},
    ]  # fmt: skip
    return Step(text, logprobs={"content": entries})


def test_scores_from_token_probabilities():
    steps = [
        answer_with_tokens("true", {"true": 0.6, "false": 0.2}),
        answer_with_tokens("false", {"false": 0.9, "true": 0.1}),
    ]
    with ScriptedChatServer(steps) as server:
        results = list(serve(server, concurrency=1).results(pictures(2)))
        assert [r.mode for r in results] == ["logprob"] * 2
        assert [r.score for r in results] == pytest.approx([0.75, 0.1])
        assert server.requests[0].json["logprobs"] is True


def test_scores_from_confidence_verdict_and_votes():
    def score(how: str, *script: str, votes: int = 1) -> tuple[float, str]:
        model = Recorder(*script)
        (result,) = al.create("vlm", model=model, score=how, votes=votes).results(pictures(1))
        assert len(model.asked) == result.calls
        return result.score, result.mode

    assert score("auto", BAD) == (0.8, "verbal")
    assert score("auto", NORMAL) == (pytest.approx(0.1), "verbal")
    assert score("binary", BAD) == (1.0, "binary")
    assert score("auto", '{"anomalous": true}') == (1.0, "binary")
    assert score("logprob", BAD) == (0.8, "verbal")  # the server gave no tokens
    assert score("vote", BAD, NORMAL, BAD, "nonsense", "nonsense", votes=4) == (pytest.approx(2 / 3), "vote")
    assert score("auto", BAD, NORMAL, NORMAL, NORMAL, votes=3) == (0.0, "vote")


def test_votes_are_drawn_apart():
    model = Recorder(BAD, BAD, NORMAL, NORMAL)
    (result,) = al.create("vlm", model=model, score="vote", votes=4).results(pictures(1))
    assert [(o["temperature"], o["seed"]) for o in model.options] == [(0.7, i) for i in range(4)]
    assert (result.score, result.anomalous, result.reasoning) == (0.5, True, "broken")  # a tie is looked at
    with pytest.raises(WrongInput, match="votes=5"):
        al.create("vlm", score="vote")


# Servers that lie, refuse, fail.


def test_a_contradiction_is_asked_about_once_and_then_told():
    lie = '{"anomalous": false, "defects": [{"type": "crack"}]}'
    model = Recorder(lie, BAD)
    (prediction,) = al.create("vlm", model=model).predict(pictures(1))
    assert prediction.verdict == "reject"
    assert [m.role for m in model.asked[1]] == ["user", "assistant", "user"]
    assert "contradicts itself" in model.asked[1][2].text
    (prediction,) = al.create("vlm", model=Recorder(lie)).predict(pictures(1))
    assert math.isnan(prediction.score)
    assert (prediction.verdict, prediction.map) == ("review", None)
    (reason,) = prediction.reasons
    assert reason == Reason(
        "No verdict: the answer contradicts itself: it calls the sample normal and names 'crack'.", "recorder"
    )
    assert al.create("vlm", model=Recorder(lie, BAD), again=0).predict(pictures(1)).__next__().verdict == "review"


@pytest.mark.parametrize(
    ("step", "status", "words"),
    [
        (Step(finish_reason="content_filter", text=""), "refused", "content filter"),
        (Step(message={"refusal": "not this"}, text=""), "refused", "not this"),
        ("I'm sorry, but I can't assist.", "refused", "the model refused"),
        (Step(BAD[:30], finish_reason="length"), "truncated", "max_tokens"),
        (Step(status=500), "api_error", "500"),
        (Step(status=401), "api_error", "401"),
        (Step(drop=True), "api_error", "."),
        (Step(body=b"<html>"), "api_error", "."),
        (Step(delay=3.0), "api_error", "."),
    ],
)
def test_every_way_to_fail_has_a_status_and_a_sentence(step, status, words):
    with ScriptedChatServer(lambda request: step) as server:
        results = list(serve(server, timeout=0.4).results(pictures(2)))
    for result in results:
        assert result.status == status
        assert words in result.error
        assert "\n" not in result.error
    assert [r.id for r in results] == ["0", "1"]


def test_a_busy_server_is_asked_again():
    with ScriptedChatServer([Step(status=429, headers={"Retry-After": "0"}), NORMAL]) as server:
        (result,) = serve(server, retries=1).results(pictures(1))
    assert result.anomalous is False


def test_the_key_is_in_no_message_and_no_log(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    with ScriptedChatServer(
        lambda r: Step(status=401, body=b'{"error": {"message": "bad key sk-very-secret"}}')
    ) as server:
        (result,) = serve(server, key_env="MY_KEY").results(pictures(1))
    assert result.status == "api_error"
    assert "very-secret" not in repr(result)
    assert "very-secret" not in caplog.text


def test_what_was_judged_before_an_error_is_there():
    def broken() -> np.ndarray:
        raise Unreadable("x.png is damaged; copy it again or leave it out.")

    samples = [*pictures(4), Sample("x.png", {"image": View("image", broken)})]
    found = []
    with pytest.raises(Unreadable, match=r"x\.png is damaged"):
        found.extend(vlm(PixelOracle(), concurrency=1).predict(samples))
    stream = vlm(PixelOracle()).predict(samples)
    assert [next(stream).id for _ in range(4)] == ["0", "1", "2", "3"]


# 4. Nothing is asked twice.


def test_a_second_run_asks_nothing(tmp_path, server):
    detector = serve(server, cache=str(tmp_path)).fit([sample("r", image=picture(50))])
    first = list(detector.predict(pictures(5)))
    assert len(server.requests) == 5
    again = list(serve(server, cache=str(tmp_path)).fit([sample("r", image=picture(50))]).predict(pictures(5)))
    assert len(server.requests) == 5
    assert [p.score for p in again] == [p.score for p in first]
    other = picture(50)
    other[0, 0, 0] ^= 1
    list(serve(server, cache=str(tmp_path)).fit([sample("r", image=other)]).predict(pictures(5)))
    assert len(server.requests) == 10


def test_after_a_crash_only_the_rest_is_asked(tmp_path, server):
    samples = pictures(6)
    stream = serve(server, cache=str(tmp_path), concurrency=1).predict(samples)
    done = [next(stream) for _ in range(3)]
    stream.close()
    asked = len(server.requests)
    assert 3 <= asked <= 5  # a bounded look-ahead
    rest = list(serve(server, cache=str(tmp_path), concurrency=1).predict(samples))
    assert len(server.requests) == 6
    assert [p.score for p in rest[:3]] == [p.score for p in done]


def test_a_lie_is_not_asked_again_and_a_failure_is(tmp_path):
    answers = {"lie": '{"anomalous": "perhaps"}', "down": Step(status=500)}
    for name, step in answers.items():
        with ScriptedChatServer(lambda request, step=step: step) as server:
            for _ in range(2):
                (prediction,) = serve(server, cache=str(tmp_path / name)).predict(pictures(1))
                assert prediction.verdict == "review"
            assert len(server.requests) == 2


def test_requests_run_at_once_and_stay_in_order():
    def slow_first(request: Received) -> Step:
        shade = int(np.asarray(request.pictures[-1][1])[0, 0, 0])
        return Step(json.dumps({"reasoning": str(shade), "anomalous": False}), delay=0.2 if shade < 2 else 0.0)

    samples = [sample(str(i), image=np.full((8, 8, 3), i, np.uint8)) for i in range(8)]
    with ScriptedChatServer(slow_first) as server:
        results = list(serve(server, concurrency=4).results(samples))
        assert 1 < server.most_at_once <= 4
    assert [r.reasoning for r in results] == [r.id for r in results]


# 6. As the authors' code.


def test_official_questions(server):
    reference = sample("good", image=picture(0), category="bottle")
    model = Recorder('{"reasoning": "ok", "correctness": 0}')
    test = sample("x", image=picture(9), category="bottle")
    for order, kinds in (("text_first", [str, Picture, Picture]), ("images_first", [Picture, Picture, str])):
        detector = al.create("vlm", model=model, compat="official", order=order).fit([reference])
        (result,) = detector.results([test])
        (message,) = model.asked[-1]
        assert [type(p) for p in message.parts] == kinds
        assert (result.anomalous, result.score, result.mode) == (True, 1.0, "binary")
        images = [p for p in message.parts if isinstance(p, Picture)]
        assert images == [Picture.of(picture(0)), Picture.of(picture(9))]
        assert "normal bottle" in message.text
        assert '"correctness"' in message.text
        assert model.options[-1]["logprobs"] is False
    with pytest.warns(UserWarning, match="its verdict says nothing"):
        list(detector.results([reference]))
    assert (
        len([p for p in model.asked[-1][0].parts if isinstance(p, Picture)]) == 2
    )  # compared with itself all the same
    with pytest.raises(WrongInput, match="compares with a normal picture"):
        list(al.create("vlm", model=model, compat="official").predict([test]))


# 7. Second stage.


def flagged_and_not() -> tuple[list[Sample], list[Prediction]]:
    samples = pictures(4)
    region = Region((16, 8, 28, 20), 144, 0.9)
    verdicts = ("pass", "reject", "review", None)
    regions = ((), (region, Region((40, 40, 50, 60), 200, 0.5)), (region,), ())
    return samples, [
        Prediction(s.id, float(i), regions=r, reasons=(Reason("far from normal"),), verdict=v)
        for i, (s, v, r) in enumerate(zip(samples, verdicts, regions, strict=True))
    ]  # fmt: skip


def test_only_what_was_flagged_is_explained():
    samples, predictions = flagged_and_not()
    model = Recorder(
        '{"reasoning": "rust on it", "anomalous": true, "defects": [{"mark": 2, "type": "rust", "where": "below"}, '
        '{"mark": 9, "type": "dent", "box": [0, 0, 500, 500]}]}'
    )
    out = list(explain(al.create("vlm", model=model, concurrency=1, object="plate"), iter(predictions), samples[::-1]))
    assert len(model.asked) == 2
    assert [p.id for p in out] == [p.id for p in predictions]
    assert [(p.score, p.verdict, p.regions) for p in out] == [(p.score, p.verdict, p.regions) for p in predictions]
    assert out[0] == predictions[0]
    assert out[3] == predictions[3]
    assert out[1].reasons == (
        Reason("far from normal"),
        Reason("rust on it", "recorder"),
        Reason("rust: below", "recorder", (40, 40, 50, 60)),
        Reason("dent", "recorder", (0, 0, 32, 32)),
    )
    assert "points to 1 places" in model.text
    assert "called: plate" in model.text
    assert "judge one sample" not in model.text
    plain, marked_copy = (p for p in model.asked[0][0].parts if isinstance(p, Picture))
    assert plain == Picture.of(samples[1].image())
    assert marked_copy != plain


def test_explanations_that_fail_or_disagree_say_so():
    samples, predictions = flagged_and_not()
    out = list(explain(Recorder(NORMAL), predictions, samples))
    assert out[1].reasons[-1].text == "The model sees nothing wrong: fine"
    out = list(explain(Recorder(Answer("", "api_error", "the server is down.")), predictions, samples))
    assert [r.text for r in out[2].reasons] == ["far from normal", "No explanation: the server is down."]
    with pytest.raises(WrongInput, match="prediction 1 has no sample"):
        list(explain(Recorder(NORMAL), predictions, samples[:1]))
    everything = list(explain(Recorder(NORMAL), predictions, samples, flagged=lambda p: True))
    assert all(len(p.reasons) == 2 for p in everything)


def test_another_detector_is_explained(drawn):
    detector = al.create("patchcore", image_size=64).fit(drawn.train()[:4])
    limit = max(p.score for p in detector.predict(drawn.train()[4:8]))
    calibration = al.Calibration(*(np.full(9, limit),) * 3, "held-out")
    judged = [calibration.judge(p, 0.1) for p in detector.predict(drawn.test())]
    model = Recorder(BAD)
    out = list(explain(al.create("vlm", model=model), judged, drawn.test()))
    assert len(model.asked) == sum(p.verdict != "pass" for p in judged) > 0
    for before, after in zip(judged, out, strict=True):
        assert (len(after.reasons) > len(before.reasons)) == (before.verdict != "pass")


# Around it.


def test_cost_is_told_without_sending(server):
    detector = serve(server, votes=3, score="vote", references=1).fit([sample("r", image=picture(50))])
    cost = detector.cost(pictures(4))
    assert (cost.requests, cost.pictures) == (12, 24)
    assert not server.requests
    list(detector.predict(pictures(4)))
    assert len(server.requests) == 12
    sent = sum(len(json.dumps(r.json["messages"]).encode()) for r in server.requests)
    assert cost.bytes == pytest.approx(sent, rel=0.05)


def test_nothing_is_sent_without_an_address():
    for settings, words in (({}, "base_url"), ({"base_url": "ftp://x"}, "base_url"), ({"model": 3}, "model is a int")):
        with pytest.raises(WrongInput, match=words):
            next(al.create("vlm", **settings).predict(pictures(1)))
    with pytest.raises(WrongInput, match="name"):
        next(al.create("vlm", base_url="http://127.0.0.1:9/v1").predict(pictures(1)))


@pytest.mark.parametrize(
    "settings", [{"references": -1}, {"tiles": (0, 2)}, {"tiles": (9, 9)}, {"votes": 0}, {"concurrency": 0}, {"key_env": "K"}]
)  # fmt: skip
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(WrongInput, match="Customizable-VLM"):
        al.create("vlm", **settings)


def test_calibrated_on_good_pictures():
    detector = vlm(PixelOracle())
    good = [sample(str(i), 0, image=picture(i)) for i in range(10)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        al.fit_calibrated(detector, good)
    assert detector.calibration.count == 10
    assert detector.calibration.how == "cross-fitted"
    assert detector.calibration.judge(Prediction("x", 0.99), 0.1).verdict == "reject"
    unknown = detector.calibration.judge(Prediction("x", math.nan), 0.1)
    assert (unknown.verdict, unknown.p_value) == ("review", None)


def test_a_report_of_verdicts_and_failures(tmp_path):
    from anomalens.apps.tasks import evaluate, predict
    from anomalens.images import encode

    for kind, spot in (("test/good", 0), ("test/bad", 20)):
        (tmp_path / "new" / kind).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "new" / kind / f"{i}.png").write_bytes(encode(picture(10 * spot + i, spot)))
    oracle = PixelOracle()
    silent = picture(0).tobytes()

    def judge(request: Received) -> Step | str:
        pixels = np.asarray(request.pictures[-1][1])
        return Step(text="") if pixels.tobytes() == silent else oracle.serve(request)

    with ScriptedChatServer(judge) as server:
        model = tmp_path / "model"
        al.save(serve(server), model)
        summary = predict(str(model), str(tmp_path / "new"), str(tmp_path / "out"), quiet=True)
        figures = evaluate(str(model), str(tmp_path / "new"), None, quiet=True)
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())}
    assert {k: r["verdict"] for k, r in rows.items()} == {
        "test/good/0.png": "review", "test/good/1.png": "pass", "test/bad/0.png": "review", "test/bad/1.png": "review",
    }  # fmt: skip
    assert rows["test/good/0.png"]["error"] == "No verdict: the model answered with no text."
    assert rows["test/bad/0.png"]["reasons"][1]["box"] == [16, 8, 36, 28]
    assert rows["test/bad/0.png"]["regions"]
    assert "calls anomalous are marked for review" in summary["words"]
    assert "a spot" in (Path(tmp_path) / "out" / "index.html").read_text()
    assert figures["pictures"] == 3
    assert list(figures["unreadable"].values()) == ["No verdict: the model answered with no text."]
    assert figures["figures"]["image auroc"]["value"] == 1.0


def test_needs_no_fit():
    detector = vlm(PixelOracle())
    assert detector.fitted
    assert not detector.needs_fit
    assert detector.learns
    assert not vlm(PixelOracle(), references=0).learns
