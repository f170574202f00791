"""What `anomalens train-aux` does: train, on annotated data sets, what a method then uses on things it never saw."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import datasets
from .. import detector as registry
from ..detector import create
from ..errors import CannotWrite, WrongInput
from ..parts.train import rank
from ..registry import resolve
from ..types import Sample
from .progress import say, shown_training
from .tasks import settings_for


def train_aux(
    method: str,
    data: Sequence[str],
    out: str,
    *,
    validate: Sequence[str] = (),
    epochs: int | None = None,
    recipe: str | None = None,
    backbone: str | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train the adapter of a method that has `train_auxiliary` and write it to `out`, a .safetensors file.

    data, validate: READER=ROOT, of whose test pictures all categories are used. With `validate` the epoch that is best
    on it is kept. An interrupted training goes on where it stopped; its checkpoints lie in `out`.training until it ends.
    Returns {"words", "adapter", ...}, JSON-able.
    """
    name, target = resolve("detectors", "detector", method), Path(out)
    quiet = quiet or rank() > 0
    cls = registry.class_of(name)
    if not hasattr(cls, "train_auxiliary"):
        able = [n for n in registry.names() if hasattr(registry.class_of(n), "train_auxiliary")]
        raise WrongInput(f"{name} learns nothing from data sets of other things; {' and '.join(able)} do.")
    if target.suffix != ".safetensors":
        raise WrongInput(f"--out is the file of the adapter and ends in .safetensors; got {out}.")
    if target.exists():
        raise CannotWrite(f"{out} exists already; choose another name, or remove it.")
    detector: Any = create(name, **settings_for(name, backbone=backbone, seed=seed, device=device, settings=settings))
    samples, held_out = annotated(data), annotated(validate)
    options = {
        "epochs": epochs, "recipe": recipe, "validation": held_out or None, "select": "best" if held_out else None,
    }  # fmt: skip
    known = inspect.signature(detector.train_auxiliary).parameters
    chosen = {key: value for key, value in options.items() if value is not None}
    if foreign := [key for key in chosen if key not in known]:
        option = {"validation": "validate"}.get(foreign[0], foreign[0])
        raise WrongInput(f"the training of {name} has no --{option}; leave it out.")
    bad = sum(bool(s.label) for s in samples)
    length = chosen.get("epochs", known["epochs"].default)
    say(
        f"{registry.card(name).title} learns from {len(samples)} pictures of {len({s.category for s in samples})} categories "
        f"({bad} anomalous), epochs: {length}; how long that takes is said after three steps. Ctrl-C stops it, the same "
        "command goes on.",
        quiet,
    )
    checkpoints = target.with_name(target.name + ".training")
    with shown_training(quiet):
        trained = detector.train_auxiliary(samples, out=target, checkpoints=checkpoints, **chosen)
    if rank() == 0:
        shutil.rmtree(checkpoints, ignore_errors=True)
    use = ["anomalens", "inspect", "NEW", "--method", name, *(["--backbone", backbone] if backbone else [])]
    use += [part for text in (*settings, f"adapter={out}") for part in ("--set", text)]
    words = [f"{out} was trained in {trained.steps} steps, last loss {trained.loss:.4g}."]
    if trained.skipped:
        words.append(f"{trained.skipped} steps were skipped because they were not finite.")
    if trained.scores:
        shown = ", ".join(f"{score:.3f} (step {step})" for step, score in trained.scores)
        words.append(f"On the data to validate on: {shown}; the best was kept, so it is no figure of unseen data.")
    words.append(f"To use it: {shlex.join(use)}")
    return {"words": "\n".join(words), "adapter": str(target), "method": name, "pictures": len(samples), "anomalous": bad,
            "steps": trained.steps, "loss": trained.loss, "scores": trained.scores}  # fmt: skip


def annotated(words: Sequence[str]) -> list[Sample]:
    """The labelled test samples of all categories of READER=ROOT, READER=ROOT, ...

    Raises:
        WrongInput: another form, no such reader, or nothing of the data set below the root.
    """
    found: list[Sample] = []
    for word in words:
        name, equals, root = word.partition("=")
        if not (name and equals and root):
            raise WrongInput(f"data is given as READER=ROOT, such as mvtec=/data/mvtec; got {word!r}.")
        reader: Any = datasets.reader(name)
        fields = {f.name for f in dataclasses.fields(reader)}
        if "root" not in fields:
            raise WrongInput(f"{name} reads no folder; readers of folders are listed in docs/datasets.md.")
        if "category" in fields:
            categories = reader(root=root, category="").categories
            parts = [reader(root=root, category=c) for c in categories or datasets.card(name).categories[:1]]
        else:
            parts = [reader(root=root)]
        found += [sample for part in parts for sample in part.test() if sample.label is not None]
    return found
