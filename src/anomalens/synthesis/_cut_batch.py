"""Many pictures from CUT: an output folder that can be continued, and reading it as samples.

    <out>/<class>/<anomaly>/{images/000000.png, masks/000000.png, soft/000000.npy}
    <out>/manifest.jsonl

In a mask picture 255 is anomalous, 128 is ignored, 0 is normal. A line of the manifest is one generation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ..errors import NotMade, WrongInput
from ..files import write_atomic, writing
from ..images import encode, read_image
from ..types import Sample, View
from ._cut_pictures import IGNORED

if TYPE_CHECKING:
    from ._cut_request import AnomalyRequest, GeneratedAnomaly

LOG = logging.getLogger("anomalens")

MANIFEST = "manifest.jsonl"
SHOWN = {0: 0, 1: 255, IGNORED: 128}  # mask to grey value in the file


# --- writing ----------------------------------------------------------------------------------------------------------


class Generates(Protocol):
    """What the runner needs: CUT, or anything that makes the same of a request."""

    def generate(self, request: AnomalyRequest) -> GeneratedAnomaly: ...

    def described(self) -> dict[str, Any]:
        """Settings, checkpoint and its licence, as JSON."""
        ...


class Progress(Protocol):
    """Told before the first and after every request: figures are left (seconds) and accepted, once there are any."""

    def __call__(self, done: int, total: int, figures: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Summary:
    """Numbers of requests. skipped: finished in an earlier run. failed: nothing could be made of the picture."""

    made: int = 0
    accepted: int = 0
    skipped: int = 0
    failed: int = 0


def run(
    generator: Generates,
    requests: Iterable[AnomalyRequest],
    folder: str | Path,
    *,
    total: int | None = None,
    report: Progress | None = None,
) -> Summary:
    """Generate every request that is not in the folder yet; rejected ones are kept, and marked in the manifest.

    requests are taken one at a time, so a generator keeps memory at one picture. total: how many there are, where
    `requests` does not know. A request is the same as an earlier one where picture, mask, words, strength, seed, settings
    and checkpoint are.

    Raises:
        CannotWrite: the folder cannot be written; what is in it stays.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    entries = _manifest(manifest)
    finished = {
        entry["key"] for entry in entries if all((folder / entry[k]).is_file() for k in ("image", "mask", "soft"))
    }
    numbers: dict[str, int] = {}
    for entry in entries:
        group, number = _group(entry["image"]), int(Path(entry["image"]).stem)
        numbers[group] = max(numbers.get(group, 0), number + 1)
    described = generator.described()
    if total is None:
        total = len(requests) if isinstance(requests, Sized) else 0
    made = accepted = skipped = failed = 0
    began = time.monotonic()
    if report is not None:
        report(0, total, {})
    for done, request in enumerate(requests, 1):
        key = _key(request, described)
        if key in finished:
            skipped += 1
        else:
            try:
                generated = generator.generate(request)
            except NotMade as error:
                LOG.warning("nothing was made of %s: %s", request.source_id or f"request {done}", error)
                failed += 1
            else:
                group = f"{_slug(request.object_name)}/{_slug(request.anomaly or request.anomaly_phrase)}"
                number = numbers.get(group, 0)
                numbers[group] = number + 1
                _write(folder, group, number, generated, key, described)
                made, accepted = made + 1, accepted + generated.accepted
                finished.add(key)
        if report is not None:
            rate = (made + failed) / max(time.monotonic() - began, 1e-9)
            left = {"left": (total - done) / rate} if rate and total >= done else {}
            report(done, total, {"accepted": float(accepted), **left})
    return Summary(made, accepted, skipped, failed)


def _manifest(path: Path) -> list[dict[str, Any]]:
    """The lines of a manifest; one that a stopped run left unfinished is taken out of the file."""
    if not path.is_file():
        return []
    entries, lines = [], path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    if len(entries) < len(lines):
        write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    return entries


def _write(
    folder: Path, group: str, number: int, made: GeneratedAnomaly, key: str, described: Mapping[str, Any]
) -> None:
    names = {k: f"{group}/{k}s/{number:06d}.png" for k in ("image", "mask")} | {
        "soft": f"{group}/soft/{number:06d}.npy"
    }
    write_atomic(folder / names["image"], encode(made.image))
    table = np.zeros(256, np.uint8)
    table[list(SHOWN)] = list(SHOWN.values())
    write_atomic(folder / names["mask"], encode(table[made.mask]))
    with writing(folder / names["soft"]):
        (folder / names["soft"]).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / names["soft"], made.pseudo_mask)
    entry = {
        "key": key, **names, "source": made.source_id, "request": asked(made.request), "seed": made.request.seed,
        "scores": dict(made.scores), "accepted": made.accepted, "objections": list(made.objections),
        "version": version("anomalens"), **described,
    }  # fmt: skip
    with writing(folder / MANIFEST), (folder / MANIFEST).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def asked(request: AnomalyRequest) -> dict[str, Any]:
    """A request as JSON; picture and mask by their sha256."""
    words = {k: getattr(request, k) for k in ("object_name", "anomaly", "prompt", "anomaly_phrase", "normal_prompt",
                                              "detailed_prompt", "strength", "seed", "occurrence", "source_id")}  # fmt: skip
    positions = None if request.positions is None else list(request.positions)
    return {**words, "positions": positions, "image": _sha(request.image), "mask": _sha(request.mask)}


def _sha(array: np.ndarray | None) -> str | None:
    if array is None:
        return None
    return hashlib.sha256(str((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _key(request: AnomalyRequest, described: Mapping[str, Any]) -> str:
    text = json.dumps([asked(request), described], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "object"


def _group(image: str) -> str:
    return image.rsplit("/", 2)[0]


# --- reading ----------------------------------------------------------------------------------------------------------


def read(folder: str | Path, *, accepted: bool = True) -> list[Sample]:
    """The generations of a folder as anomalous samples with masks, for anything that learns from defects.

    accepted: only those that passed the filter. A picture that somebody deleted is left out. Masks are (H, W) uint8, 1
    anomalous, 255 ignored; `Sample.made` is the line of the manifest.

    Raises:
        WrongInput: no manifest in the folder.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise WrongInput(f"{folder} has no {MANIFEST}; give a folder that synthesis.cut.run has written.")
    kept = {
        entry["key"]: entry
        for entry in _lines(folder / MANIFEST)
        if (entry["accepted"] or not accepted) and all((folder / entry[k]).is_file() for k in ("image", "mask"))
    }
    return [_sample(folder, entry) for entry in kept.values()]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was stopped while writing it


def _sample(folder: Path, entry: dict[str, Any]) -> Sample:
    image, mask = folder / entry["image"], folder / entry["mask"]
    request = entry["request"]
    return Sample(
        id=entry["image"],
        views={"image": View("image", partial(read_image, image), str(image))},
        category=request["object_name"],
        label=1,
        mask=View("mask", partial(read_mask, mask), str(mask)),
        defect=request["anomaly"] or request["anomaly_phrase"],
        made=entry,
    )


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8: 1 anomalous, 255 ignored."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    table = np.zeros(256, np.uint8)
    table[list(SHOWN.values())] = list(SHOWN)
    return table[grey]
