"""What the sandbox costs: python benchmarks/sandbox.py [--pictures 2000] [--objects 20]

Cold: from `load` to the first outcome, a fresh process each time. Warm: pictures per second of one worker, with its
replacement every 64 pictures. The program counts, measures and compares every object. On a busy computer, read the
processor time, of this process and the worker together: 1000 divided by it is the rate on a free core.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

from _common import table

from anomalens.reasoning.sandbox import LEVELS, Executor, run_all, sandbox, self_test

PROGRAM = """
def check(image):
    found = []
    for label in ("pin", "washer"):
        objects = image.find(label)
        if len(objects) != 10:
            found.append(image.finding("quantity", f"{len(objects)} x {label}, 10 expected", rule="R1", objects=objects))
        for o in objects:
            if not image.normal(o.area, image.stat(label, "area")):
                found.append(image.finding("size", f"area {o.area}", rule="R2", objects=[o]))
            if not image.in_region(o, "tray"):
                found.append(image.finding("position", "outside the tray", rule="R3", objects=[o]))
            if image.color_name(o) != "red":
                found.append(image.finding("matching", "not red", rule="R4", objects=[o]))
    return found
"""


def scene(objects: int) -> dict:
    """Pins and washers in turn on a line, every tenth of another colour."""
    return {
        "width": 1600,
        "height": 1100,
        "category": "drawn",
        "regions": {"tray": [0, 0, 1600, 1100]},
        "stats": {k: {"area": {"n": 90, "mean": 64, "std": 4, "min": 50, "max": 80}} for k in ("pin", "washer")},
        "objects": [
            {
                "id": i, "label": ("pin", "washer")[i % 2], "score": 1.0, "area": 64, "area_frac": 3.63636e-05,
                "bbox": [40 * i, 50, 40 * i + 8, 58], "center": [40 * i + 4.0, 54.0], "length": 8.0, "thickness": 8.0,
                "angle": 0.0, "aspect": 1.0, "fill": 1.0, "rgb": [201.3, 40.2, 40.4],
                "hsv": [0.0 if i % 10 else 120.0, 0.8, 0.79], "attributes": {},
            }
            for i in range(objects)
        ],
    }  # fmt: skip


def cold_ms(executor: Executor, one: dict) -> float:
    begun = time.perf_counter()
    with executor.load(PROGRAM) as program:
        assert program.run(one).status == "ok"
        return 1000 * (time.perf_counter() - begun)


def processor_s() -> float:
    """Seconds of processor time of this process and of those it has collected."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=20)
    options = parser.parse_args()
    one, rows = scene(options.objects), []
    for level in LEVELS:
        if level == "process-only":
            continue  # not a level to choose for speed
        if self_test(level):
            print(f"{level}: {self_test(level)}")
            continue
        executor = sandbox(level)
        cold = [cold_ms(executor, one) for _ in range(20)]
        begun, used = time.perf_counter(), processor_s()
        statuses = {o.status for o in run_all(executor, PROGRAM, (one for _ in range(options.pictures)))}
        rate = options.pictures / (time.perf_counter() - begun)
        assert statuses == {"ok"}
        each = 1000 * (processor_s() - used) / options.pictures
        if level.startswith("bwrap"):
            each = float("nan")  # what runs inside its namespace is not counted here
        rows.append((level, statistics.median(cold), max(cold), rate, each))
    table(("isolation", "cold, median ms", "cold, slowest ms", "warm, pictures/s", "processor ms per picture"), rows)


if __name__ == "__main__":
    main()
