"""What one run of `inspect` or `predict` leaves behind: a folder that can be stopped, resumed, read and reproduced.

    index.html      the report page, complete in itself
    results.csv     one line per picture, for spreadsheets
    results.jsonl   one object per picture, for programs
    run.json        the plan, versions, times, counts: everything needed to run it again
    maps/ID.png     16-bit grey maps, 65535 is `map_scale` of run.json

While a run is going on, everything lives in `unfinished/`, so that an earlier report stays readable until the new one
is complete: `rows.jsonl` (the plan, then one line per picture), `maps/` and `scratch/`.
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import struct
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import AnomalensError, CannotWrite, WrongInput
from ..files import writing
from ..images import encode_map, read_image, to_8bit
from ..types import Prediction, Reason, Region, Sample, Verdict
from . import report

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1
COLUMNS = ("id", "score", "p_value", "verdict", "n_regions", "regions", "error")
FILES = ("results.jsonl", "results.csv", "index.html", "run.json")  # in the order in which they are swapped in
PRIVATE = ("path", "view", "stamp", "heat")  # what a line of rows.jsonl holds for us and results.jsonl does not
HEAT_SIDE = 64  # longest side of the small map the page shows
QUEUE = 4  # maps that may wait to be written; each is as large as its picture

Row = dict[str, Any]


class RunFolder:
    """Collects predictions into a folder, one line at a time, and turns them into results at the end.

        with RunFolder(out, plan) as run:
            for prediction in detector.predict(run.pending(samples)):
                run.add(prediction, path=paths[prediction.id])
            run.finish(summary)

    plan: what identifies the run, JSON-able: method, settings, model fingerprint, folders, rate. An interrupted run in
        the folder is continued when its plan is the same, and dropped otherwise. Two keys are read here:
        `maps` (bool, default True: write maps/), and `map_scale` (map unit, the value of the brightest pixel of every
        map, for instance twice the pixel threshold; without it, four times the peak of the first map).
    message: after `with`, one sentence on what was found in the folder; empty when there is nothing to tell.
    resumed: pictures that an interrupted run had already done.
    map_scale: may also be set before the first `add`, where it is only known after fitting.
    scratch: a folder (not created) for what a continued run need not make again, such as the fitted detector; it goes
        when the run is finished.

    Raises:
        CannotWrite: the folder holds something else, or the disk refuses. What was finished is kept.
    """

    def __init__(self, path: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.plan = json.loads(json.dumps(plan))  # as it will read back, so that plans can be compared
        self.message = ""
        self.resumed = 0
        scale = self.plan.get("map_scale")
        self.map_scale: float | None = float(scale) if scale and 0 < scale < math.inf else None
        self._work = self.path / "unfinished"
        self._log = self._work / "rows.jsonl"
        self.scratch = self._work / "scratch"
        self._lines: dict[str, int] = {}  # id -> where its line starts in rows.jsonl
        self._seen: dict[str, None] = {}  # ids in input order
        self._failed: set[str] = set()
        self._queue: deque[Future[Row]] = deque()
        self._finished = False

    def __enter__(self) -> Self:
        refuse_foreign(self.path)
        self._created = not self.path.exists()
        with writing(self.path):
            self._work.mkdir(parents=True, exist_ok=True)
            self._resume()
            self._file = self._log.open("ab", buffering=0)
        self._began = time.monotonic()
        self._scored = 0
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="anomalens-write")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if not self._finished:
                self._drain()
        except AnomalensError:
            if kind is None:  # otherwise the first error is the one to tell
                raise
        finally:
            self._pool.shutdown(wait=True)
            self._file.close()
            if not self._finished and not self._lines and not self.scratch.exists():
                self._clear()

    def pending(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples that are not done yet, read as the consumer asks for them; all of them fix the final order.

        A picture that failed, or whose file has changed since it was scored, is given again.
        """
        self._began = time.monotonic()
        with self._log.open("rb") as log:
            for sample in samples:
                if sample.id in self._seen:
                    raise WrongInput(f"two samples are named {sample.id}; every picture of a run needs its own id.")
                self._seen[sample.id] = None
                if sample.id in self._lines:
                    row = self._read(log, sample.id)
                    if not row["error"] and _stamp(row["path"]) == row["stamp"]:
                        self.resumed += 1
                        continue
                    del self._lines[sample.id]
                yield sample

    def add(
        self,
        prediction: Prediction,
        picture_size: tuple[int, int] | None = None,
        path: str | os.PathLike[str] | None = None,
        label: int | None = None,
        view: str = "",
    ) -> None:
        """Keep one prediction. Its map is written in the background while the next picture is scored.

        picture_size: (height, width); the size of the map when not given. path: the picture, for the report.
        label: 1 anomalous, 0 normal, None unknown. view: which of several views of the sample that picture is.
        A score that is no number becomes an error row, with the first reason as its error.
        """
        if prediction.id in self._failed:
            return  # a prediction made without the picture does not count
        if not math.isfinite(prediction.score):
            why = prediction.reasons[0].text if prediction.reasons else ""
            return self.fail(prediction.id, why or f"the method gave no score ({prediction.score})", path, label)
        if prediction.map is not None and picture_size is None:
            picture_size = (prediction.map.shape[0], prediction.map.shape[1])
        if prediction.map is not None and self.map_scale is None:
            peak = float(np.max(prediction.map, initial=0, where=np.isfinite(prediction.map)))
            self.map_scale = 4 * peak if peak > 0 else 1.0
        row: Row = {
            "id": prediction.id,
            "score": float(prediction.score),
            "p_value": None if prediction.p_value is None else float(prediction.p_value),
            "verdict": prediction.verdict,
            "regions": [_region(region) for region in prediction.regions],
            "reasons": [_reason(reason) for reason in prediction.reasons],
            "size": picture_size and [int(picture_size[1]), int(picture_size[0])],
            "map": None,
            "map_scale": None,
            "label": None if label is None else int(label),
            "view": view,
            "error": "",
        }
        self._put(row, prediction.map, path)

    def fail(
        self, id: str, error: Exception | str, path: str | os.PathLike[str] | None = None, label: int | None = None
    ) -> None:
        """Keep a picture that could not be judged. Its verdict is "review": a person has to look at it."""
        self._failed.add(id)
        row: Row = {
            "id": id, "score": None, "p_value": None, "verdict": "review", "regions": [], "reasons": [], "size": None,
            "map": None, "map_scale": None, "label": None if label is None else int(label), "error": str(error),
        }  # fmt: skip
        self._put(row, None, path)

    def rows(self) -> Iterator[Row]:
        """What is done, in input order, one at a time from the disk; keys as in results.jsonl and more."""
        self._drain()
        with self._log.open("rb") as log:
            for id in self._seen:
                if id in self._lines:
                    yield self._read(log, id)

    def finish(
        self,
        summary: report.Summary,
        *,
        verdicts: Mapping[str, Verdict] | None = None,
        reasons: Mapping[str, Sequence[Reason]] | None = None,
        pictures: Callable[[str], np.ndarray | None] | None = None,
        limit: int = 200,
    ) -> Path:
        """Write the results, swap them in and remove what is unfinished; returns the path of the page.

        verdicts: by id, where they are only known when all scores are (no calibration). A picture without any
            verdict, and a sample the method gave no answer for, is "review": nothing passes unseen.
        reasons: by id, what was said afterwards; put behind the reasons of the method.
        pictures: id -> (H, W, 3) uint8 for the page; where it gives None, the file given to `add` is shown.
        limit: most pictures on the page.
        """
        self._drain()
        for id in self._seen:
            if id not in self._lines:
                self.fail(id, "the method gave no answer for this picture")
        self._drain()
        self._later = {id: [_reason(reason) for reason in some] for id, some in (reasons or {}).items()}
        with writing(self.path):
            brief = self._write_results(verdicts or {})
            facts = self._facts(summary, brief)
            _write(self._work / "run.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
            rows = self._with_details(brief, report.choose(brief, limit))
            page = report.render(facts, rows, _pictures(rows, pictures), limit=limit)
            _write(self._work / "index.html", page)
            self._file.close()
            self._swap()
        self._finished = True
        return self.path / "index.html"

    def _put(self, row: Row, values: np.ndarray | None, path: str | os.PathLike[str] | None) -> None:
        self._seen.setdefault(row["id"])
        self._scored += 1
        row["path"] = None if path is None else os.fspath(path)
        row["stamp"] = _stamp(row["path"])
        while len(self._queue) >= QUEUE or (self._queue and self._queue[0].done()):
            self._append(self._queue.popleft().result())
        self._queue.append(self._pool.submit(self._complete, row, values))

    def _complete(self, row: Row, values: np.ndarray | None) -> Row:
        """In a thread: write the map, then the row may be written, so that a row on disk always has its map."""
        if values is None:
            return row
        values = _finite(values)
        row["heat"] = shrink(values)
        if self.plan.get("maps", True) and self.map_scale is not None:
            row["map"], row["map_scale"] = map_name(row["id"]), self.map_scale
            target = self._work / row["map"]
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_with_text(encode_map(values, self.map_scale), "map_scale", repr(self.map_scale)))
        return row

    def _append(self, row: Row) -> None:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with writing(self._log):
            start = self._file.seek(0, os.SEEK_END)
            if self._file.write(line) != len(line):
                with suppress(OSError):
                    self._file.truncate(start)
                raise OSError(errno.ENOSPC, "")
        self._lines[row["id"]] = start

    def _drain(self) -> None:
        while self._queue:
            self._append(self._queue.popleft().result())

    def _resume(self) -> None:
        """Read what an interrupted run left; a torn last line is cut off, another plan starts over."""
        header = {"format": FORMAT, "anomalens": __version__, "plan": self.plan}
        with suppress(FileNotFoundError), self._log.open("rb") as log:
            found = _parse(log.readline()) or {}
            if all(found.get(key) == value for key, value in header.items()):
                self.started = found["started"]
                end = log.tell()
                while row := _parse(log.readline()):
                    self._lines[row["id"]] = end
                    self.map_scale = self.map_scale or row["map_scale"]
                    end = log.tell()
                os.truncate(self._log, end)
                self._undo_swap()
                if self._lines:
                    self.message = (
                        f"{self.path} holds an interrupted run with {len(self._lines)} finished pictures; "
                        "it is continued."
                    )
                return
            if lost := sum(1 for _ in log):
                other = found.get("plan") or {}
                keys = sorted(key for key in {*other, *self.plan} if other.get(key) != self.plan.get(key))
                why = f"with another {', '.join(keys)}" if keys else "of another version of anomalens"
                self.message = (
                    f"{self.path} holds an interrupted run {why}; its {lost} finished pictures are scored again."
                )
        shutil.rmtree(self._work)
        self._work.mkdir()
        self.started = _now()
        _write(self._log, json.dumps({**header, "started": self.started}) + "\n")

    def _read(self, log: IO[bytes], id: str) -> Row:
        log.seek(self._lines[id])
        return json.loads(log.readline())

    def _write_results(self, verdicts: Mapping[str, Verdict]) -> list[Row]:
        """results.csv and results.jsonl; returns what the page needs of every row, which is little."""
        brief = []
        with (
            (self._work / "results.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as table,
            (self._work / "results.jsonl").open("w", encoding="utf-8") as objects,
        ):
            sheet = csv.writer(table)
            sheet.writerow(COLUMNS)
            for row in map(self._with_later, self.rows()):
                if not row["error"]:
                    row["verdict"] = verdicts.get(row["id"]) or row["verdict"] or "review"
                if row["verdict"] == "pass":
                    row["regions"] = []  # found before it was known that nothing stands out
                public = {key: value for key, value in row.items() if key not in PRIVATE}
                objects.write(json.dumps(public, allow_nan=False) + "\n")
                regions = json.dumps(row["regions"], separators=(",", ":"))
                score, p_value = ("" if row[key] is None else repr(row[key]) for key in ("score", "p_value"))
                sheet.writerow(
                    [cell(row["id"]), score, p_value, row["verdict"], len(row["regions"]), regions, cell(row["error"])]
                )
                brief.append({key: row[key] for key in ("id", "score", "p_value", "verdict", "error", "regions")})
        return brief

    def _with_details(self, brief: list[Row], chosen: list[Row]) -> list[Row]:
        """The same rows; those on the page with their regions, heat and path."""
        ids = {row["id"] for row in chosen}
        with self._log.open("rb") as log:
            return [
                {**self._with_later(self._read(log, row["id"])), **row} if row["id"] in ids else row for row in brief
            ]

    def _with_later(self, row: Row) -> Row:
        """The row with the reasons that were given to `finish`."""
        return {**row, "reasons": [*row["reasons"], *self._later.get(row["id"], ())]}

    def _facts(self, summary: report.Summary, brief: list[Row]) -> dict[str, Any]:
        """run.json: what the caller says, and what this object knows."""
        seconds = time.monotonic() - self._began
        counts = Counter("unreadable" if row["error"] else row["verdict"] for row in brief)
        return {
            "format": FORMAT,
            "anomalens": __version__,
            "command": shlex.join(["anomalens", *sys.argv[1:]]),
            "plan": self.plan,
            "map_scale": self.map_scale if (self._work / "maps").exists() else None,
            "counts": {key: counts[key] for key in ("reject", "review", "pass", "unreadable")},
            "started": self.started,
            "finished": _now(),
            "resumed": self.resumed,
            "seconds": seconds,
            "pictures_per_second": self._scored / seconds if seconds > 0 else None,
            **_finite_numbers(summary),
            "versions": {**versions(), **summary.get("versions", {})},
        }

    def _swap(self) -> None:
        """Replace the earlier results. Stopped half way, the same command completes it without scoring again."""
        maps, new, before = self.path / "maps", self._work / "maps", self._work / "maps-before"
        if maps.exists():
            os.replace(maps, before)
        else:
            before.mkdir(exist_ok=True)
        if new.exists():
            os.replace(new, maps)
        for name in FILES:
            os.replace(self._work / name, self.path / name)
        self._log.unlink()  # from here on there is nothing to continue
        shutil.rmtree(self._work)

    def _undo_swap(self) -> None:
        """Take the maps back that an interrupted `_swap` had moved."""
        maps, new, before = self.path / "maps", self._work / "maps", self._work / "maps-before"
        if before.exists() and not new.exists() and maps.exists():
            os.replace(maps, new)

    def _clear(self) -> None:
        """There is nothing to continue: leave the folder as it was found."""
        shutil.rmtree(self._work, ignore_errors=True)
        if self._created:
            with suppress(OSError):
                self.path.rmdir()


def refuse_foreign(folder: Path) -> None:
    """Raise CannotWrite unless the folder is new, empty, or one that a run has written."""
    with writing(folder):
        if folder.is_file():
            raise CannotWrite(f"{folder} is a file; give a folder for the results.")
        if not folder.exists() or (folder / "unfinished" / "rows.jsonl").exists() or not any(folder.iterdir()):
            return
        with suppress(FileNotFoundError, ValueError, TypeError):
            if "anomalens" in json.loads((folder / "run.json").read_text(encoding="utf-8")):
                return
    raise CannotWrite(f"{folder} holds files that no run of anomalens has written; give a new or empty folder.")


def map_name(id: str) -> str:
    """Where the map of a picture lies in the run folder: maps/ID.png, `/` being sub-folders.

    A name too long for the file system is cut and gets a fingerprint.
    """
    parts = PurePosixPath(id).parts
    if not parts or id.startswith("/") or ".." in parts:
        raise WrongInput(f"the id {id!r} cannot name a map; ids are paths relative to the folder that was given.")
    name = parts[-1] + ".png"
    if len(os.fsencode(name)) > 255:
        name = f"{parts[-1][:50]}-{hashlib.sha256(os.fsencode(id)).hexdigest()[:16]}.png"
    return "/".join(("maps", *parts[:-1], name))


def cell(text: str) -> str:
    """A text for a spreadsheet: what a spreadsheet would run as a formula gets a leading apostrophe.

    That is text that starts with = + - @, a tab or a line break. results.jsonl holds every id unchanged.
    """
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


def shrink(values: np.ndarray, side: int = HEAT_SIDE) -> dict[str, Any]:
    """A map (H, W), any unit, as at most `side` x `side` cells of 8 bits, each the maximum of its area.

    The maximum keeps a thin scratch visible. Returns size [h, w], low and high (values of 0 and 255) and data (base64
    of zlib of the bytes); `expand` reads it.
    """
    shrunk = min(1.0, side / max(values.shape))
    for axis in (0, 1):
        cells = max(1, round(values.shape[axis] * shrunk))
        values = np.maximum.reduceat(values, np.arange(cells) * values.shape[axis] // cells, axis=axis)
    low, high = float(values.min()), float(values.max())
    levels = np.rint((values - low) * (255 / (high - low))) if high > low else np.zeros(values.shape)
    data = base64.b64encode(zlib.compress(levels.astype(np.uint8).tobytes(), 6)).decode()
    return {"size": list(values.shape), "low": low, "high": high, "data": data}


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    system = f"{platform.system()} {platform.machine()}"
    found = {"anomalens": __version__, "python": platform.python_version(), "system": system}
    for name in ("numpy", "onnxruntime", "pillow", "torch", "timm"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _region(region: Region) -> dict[str, Any]:
    return {
        "box": _ints(region.box),
        "area": int(region.area),
        "peak": float(region.peak),
        "outline": [_ints(point) for point in region.outline],
    }


def _reason(reason: Reason) -> dict[str, Any]:
    shares = {view: float(share) for view, share in reason.shares.items()}
    return {"text": reason.text, "rule": reason.rule, "box": reason.box and _ints(reason.box), "shares": shares}


def _ints(values: Iterable[int]) -> list[int]:
    return [int(value) for value in values]


def _finite(values: np.ndarray) -> np.ndarray:
    """NaN becomes 0, infinities the largest and smallest finite values."""
    good = np.isfinite(values)
    if good.all():
        return values
    kept = values[good] if good.any() else np.zeros(1, values.dtype)
    return np.nan_to_num(values, nan=0.0, posinf=float(kept.max()), neginf=float(kept.min()))


def _finite_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """A threshold that nothing can reach is infinite, which JSON cannot say: it becomes None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _with_text(png: bytes, key: str, text: str) -> bytes:
    """Put a tEXt chunk behind the header of a PNG file (8 bytes of signature, 25 of IHDR)."""
    body = b"tEXt" + key.encode() + b"\0" + text.encode()
    return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


def _parse(line: bytes) -> Row | None:
    """One complete line, or None for the end, a torn line or a damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _pictures(
    rows: list[Row], first: Callable[[str], np.ndarray | None] | None = None
) -> Callable[[str], np.ndarray | None]:
    """id -> (H, W, 3) uint8: what `first` gives, else the file that was scored; None when it is gone or unreadable."""
    paths = {row["id"]: row["path"] for row in rows if row.get("path")}

    def read(id: str) -> np.ndarray | None:
        if first is not None and (picture := first(id)) is not None:
            return picture
        with suppress(AnomalensError):
            return to_8bit(read_image(paths[id])) if id in paths else None
        return None

    return read


def _stamp(path: str | None) -> list[int] | None:
    """Time and size of a file: enough to notice that a picture was replaced."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        return None
    return found and [found.st_mtime_ns, found.st_size]


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "replace"))  # file names may hold bytes that are no UTF-8


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
