"""A list in JSON Lines on the command line: inspected and evaluated by a model behind a server that sees what it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.chat_server import ScriptedChatServer
from tests.support.command import run
from tests.support.oracle import PixelOracle

pytest.importorskip("httpx")


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ScriptedChatServer]:
    monkeypatch.setenv("ANOMALENS_CACHE", str(tmp_path / "cache"))
    with ScriptedChatServer(PixelOracle().serve) as running:
        yield running


def picture(path: Path, spot: int, shade: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((64, 64, 3), shade, np.uint8)
    values[8 : 8 + spot, 16 : 16 + spot] = (220, 30, 30)
    Image.fromarray(values).save(path)


@pytest.fixture
def listed(tmp_path) -> Path:
    """A list of everything, half of it with something red."""
    lines: list[dict] = []
    for i in range(2):
        picture(tmp_path / "good" / f"{i}.png", 0, 110 + i)
    for label, spot in ((0, 0), (1, 20)):
        picture(tmp_path / "plate" / f"{label}.png", spot)
        both = ["good/0.png", "good/1.png"]
        lines.append({"id": f"plate/{label}", "paths": f"plate/{label}.png", "references": both, "category": "plate"})
        y, x = np.mgrid[1:-1:64j, -1:1:64j]
        np.save(tmp_path / f"cloud{label}.npy", np.stack([x, y, 0.1 * x], -1))
        np.save(tmp_path / f"bare{label}.npy", np.stack([x, y, 0.1 * x], -1).reshape(-1, 3))
        for frame in range(12):
            picture(tmp_path / f"clip{label}" / f"{frame}.png", spot if frame > 6 else 0)
        lines.append({"id": f"clip/{label}", "modality": "video", "paths": f"clip{label}", "category": "belt"})
        lines.append({"id": f"cloud/{label}", "modality": "points", "paths": f"cloud{label}.npy", "category": "scan"})
        lines.append({"id": f"bare/{label}", "modality": "points", "paths": f"bare{label}.npy", "category": "scan"})
        series = np.full((120, 2), np.nan)
        series[:, 0] = np.sin(np.arange(120) / 9)
        series[40 : 40 + spot, 1] = 1.0  # the second curve is drawn in red
        np.savetxt(tmp_path / f"series{label}.csv", series, delimiter=",")
        lines.append(
            {"id": f"series/{label}", "modality": "series", "paths": f"series{label}.csv", "category": "motor"}
        )
    labelled = [{**line, "label": int(line["id"][-1])} for line in lines]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    plates = [line for line in labelled if line["category"] == "plate"]
    (tmp_path / "plates.jsonl").write_text("\n".join(map(json.dumps, plates)))
    return tmp_path


def asked(server: ScriptedChatServer) -> tuple[str, ...]:
    return "--method", "vlm", "--set", f"base_url={server.url}", "--set", "model=m", "--set", "references=2"


@pytest.mark.filterwarnings("ignore:samples of the category")
def test_everything_on_a_list_is_inspected(listed, server):
    said = run("inspect", listed / "items.jsonl", *asked(server), "--out", listed / "report")
    assert "References: 2, as listed in" in said.stderr
    rows = {r["id"]: r for r in map(json.loads, (listed / "report" / "results.jsonl").read_text().splitlines())}
    seen = ("plate", "clip", "series")  # the clouds hold nothing red
    assert {i for i, row in rows.items() if row["verdict"] == "review"} == {f"{name}/1" for name in seen}
    shown = {tuple(sorted(len(r.pictures) for r in server.requests if word in "\n".join(r.texts)))
             for word in ("called: plate", "called: belt")}  # fmt: skip
    assert shown == {(3, 3), (1, 1)}
    page = (listed / "report" / "index.html").read_text()
    assert "the picture is not there any more" not in page
    assert page.count("data:image/jpeg") == 10
    assert ">frame_7<" in page  # not the first, which shows nothing
    before = len(server.requests)
    run("inspect", listed / "items.jsonl", *asked(server), "--out", listed / "again")
    assert len(server.requests) == before


def test_a_list_is_learnt_from_and_evaluated(listed, server):
    run("fit", listed / "plates.jsonl", *asked(server), "--out", listed / "model")
    figures = json.loads(run("evaluate", listed / "model", listed / "plates.jsonl", "--json").stdout)
    assert figures["figures"]["image auroc"]["value"] == 1
    settings = {"base_url": server.url, "model": "m"}
    plan = {"methods": [{"name": "vlm", "settings": settings}], "data": [{"reader": "json-lines", "root": "items.jsonl",
            "categories": ["plate", "motor"]}], "metrics": {"image": ["auroc"], "pixel": []}}  # fmt: skip
    (listed / "plan.json").write_text(json.dumps(plan))
    run("bench", listed / "plan.json", "--out", listed / "bench")
    rows = [json.loads(line) for line in (listed / "bench" / "results.jsonl").read_text().splitlines()]
    found = {r["cell"]["data"]["category"]: r["figures"]["image.auroc"]["value"] for r in rows if "cell" in r}
    assert found == {"plate": 1.0, "motor": 1.0}
