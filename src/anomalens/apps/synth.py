"""What `anomalens synth` does: draw defects into good pictures, with masks, as a folder that every command reads.

    test/MAKER/NUMBER.png               a drawn picture; NUMBER/light_0.png ... where a thing has several lights
    test/good/NUMBER.png                the good pictures as they are, where asked for
    ground_truth/MAKER/NUMBER_mask.png  what was changed: white, everything else black
    manifest.jsonl                      one line per drawn picture: source, seed, settings, what was drawn and measured
    contact_sheet.png                   examples to look at

Several categories lie in folders of their own. Picture NUMBER depends on the seed and the makers, not on how many are
drawn: a stopped run goes on, and a larger --n adds to what is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .. import __version__, datasets, synthesis
from ..datasets.folder import Folder
from ..detector import setting_types
from ..errors import CannotWrite, NotMade, Unreadable, WrongInput
from ..files import write_atomic, writing
from ..images import encode, read_image, read_mask, resize, to_8bit
from ..synthesis._maker import Maker, box_around, is_grey
from ..types import Sample
from .progress import counting, say
from .tasks import good_ones

MAKERS = ("scratch", "stain", "perlin", "nsa")  # what is drawn unless somebody says otherwise
MARK = ".anomalens-synth.json"  # the plan of the run that a folder belongs to
MANIFEST, SHEET = "manifest.jsonl", "contact_sheet.png"
TILE, COLUMNS = 128, 5  # pixels of a tile of the contact sheet; examples per maker, two tiles each
AROUND = 1.6  # the second tile shows this many times the longest side of the defect
LEGEND = (
    "Whole picture, and the framed place enlarged. px: longest side. Contrast: mean change inside, of 255 grey levels."
)

Row = dict[str, Any]


def synth(
    good: str,
    out: str,
    *,
    makers: Sequence[str] = (),
    n: int = 100,
    size: str | None = None,
    severity: str | None = None,
    where: str | None = None,
    with_good: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Draw `n` pictures with defects into `out`, makers in turn. Returns {"words", "drawn", ...}, JSON-able.

    good: a folder of good pictures, or READER=ROOT. makers: texts such as `perlin,scratch:size=0.1..0.3,severity=0.5`.
    size, severity, where: for every maker that does not say its own.

    Raises:
        WrongInput: no good picture, no such maker or setting. NotMade: no picture shows any defect.
        CannotWrite: the folder holds something else, or the disk refuses.
    """
    target = Path(out)
    normal, words = good_pictures(good)
    say(words, quiet)
    common = {"size": size, "severity": severity, "where": where}
    given = {key: value for key, value in common.items() if value is not None}
    asked = [one for text in makers or (",".join(MAKERS),) for one in parsed(text)]
    ready = [made(name, {**given, **own}, normal) for name, own in asked]
    refuse_inside(target, good)
    rows = begun(target, plan_of(normal, ready, seed, with_good))
    known = {row["index"] for row in rows}
    resumed = len(known & set(range(n)))
    if resumed:
        say(f"{target} has {resumed} of them already{'; the others are drawn' if resumed < n else ''}.", quiet)
    left_out: dict[int, tuple[str, str]] = {}  # by number: the maker, and why it drew nothing
    manifest = target / MANIFEST
    if with_good:
        write_good(target, normal)
    missing = [index for index in range(n) if index not in known]
    for index in counting(missing, "drawing defects", n, resumed, quiet):
        try:
            sample = synthesis.nth(normal, ready, index, seed=seed)
        except (NotMade, Unreadable) as error:
            left_out[index] = ready[index % len(ready)].name, str(error)
            continue
        row = written(target, sample, index, seed, several(normal))
        with writing(manifest), manifest.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    if not rows:
        raise NotMade(next((why for _, why in left_out.values()), "nothing was drawn; ask for at least one with --n."))
    rows.sort(key=lambda row: row["index"])
    write_atomic(manifest, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(target / SHEET, contact_sheet(target, rows))
    return summary_of(target, rows, len(normal), resumed, left_out, with_good)


# What is asked for.


def good_pictures(good: str) -> tuple[list[Sample], str]:
    """The normal samples of a folder or of READER=ROOT, and a sentence that says what was found."""
    name, equals, root = good.partition("=")
    if equals and not Path(good).exists() and name.lower().replace("_", "-") in datasets.names():
        reader: Any = datasets.reader(name)
        fields = {f.name for f in dataclasses.fields(reader)}
        if "root" not in fields:
            raise WrongInput(f"{name} reads no folder; readers of folders are listed in docs/datasets.md.")
        if "category" in fields:
            found = [
                s for c in reader(root=root, category="").categories for s in reader(root=root, category=c).train()
            ]
        else:
            found = reader(root=root).train()
        words = f"Read by {name}: {len(found)} good pictures."
    else:
        folder = Folder(good)
        found, words = good_ones(folder), f"Good pictures: {folder.describe()}"
    normal = [s for s in found if s.label != 1]
    if not normal:
        raise WrongInput(f"{good} holds no good pictures; give a folder of pictures without defects.")
    return normal, words


def parsed(text: str) -> list[tuple[str, dict[str, str]]]:
    """`perlin,scratch:size=0.1..0.3,severity=0.5` -> [("perlin", {}), ("scratch", {"size": "0.1..0.3", ...})].

    A part with `=` but without `:` before it is a further setting of the maker before. A value with commas goes between
    double quotes: `cut:prompt="a nut, cracked"`.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for part in filter(None, (p.strip() for p in re.findall(r'(?:[^,"]|"[^"]*"?)+', text))):
        head, equals, value = part.partition("=")
        name, colon, key = head.partition(":")
        if equals and not colon:
            name, key = "", head
        if (equals and not key) or (colon and not equals) or (not name and not found):
            raise WrongInput(f"--maker takes NAME or NAME:KEY=VALUE,KEY=VALUE; got {part!r} in {text!r}.")
        if name:
            found.append((name.strip(), {}))
        if equals:
            found[-1][1][key.strip().replace("-", "_")] = value.strip().strip('"')
    if not found:
        raise WrongInput(f"--maker names no maker; known: {', '.join(synthesis.names())}.")
    return found


def made(name: str, texts: Mapping[str, str], normal: Sequence[Sample]) -> Maker:
    """A maker with its settings read from texts. Patches come from the good pictures, for makers that take them."""
    hints = setting_types(synthesis.class_of(name))
    settings: dict[str, Any] = {key: valued(key, value, hints.get(key)) for key, value in texts.items()}
    if "others" in hints:
        settings.setdefault("others", tuple(normal))
    return synthesis.create(name, **settings)


def valued(key: str, text: str, hint: Any) -> Any:
    """A value as its setting wants it: 0.1..0.3 is a range, one number the range of nothing else."""
    if get_args(hint) == (float, float):
        low, dots, high = text.partition("..")
        try:
            return (float(low), float(high if dots else low))
        except ValueError:
            raise WrongInput(f"{key} is a number or a range such as 0.1..0.3; got {text!r}.") from None
    if hint is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def plan_of(normal: Sequence[Sample], makers: Sequence[Maker], seed: int, with_good: bool) -> dict[str, Any]:
    """What decides the pictures, except how many; JSON-able."""
    ids = "\n".join(s.id for s in normal)
    return {
        "good pictures": f"{len(normal)}, {hashlib.sha256(ids.encode()).hexdigest()[:16]}",
        "makers": [[m.name, json.loads(json.dumps(m.plain_settings()))] for m in makers],
        "seed": seed,
        "with-good": with_good,
    }


# What is on the disk.


def refuse_inside(target: Path, good: str) -> None:
    source = Path(good.partition("=")[2] or good).resolve()
    if target.resolve() == source or source in target.resolve().parents:
        raise WrongInput(f"{target} lies inside {source}, where it would be read as good pictures; give another --out.")


def begun(target: Path, plan: Mapping[str, Any]) -> list[Row]:
    """Make the folder, or find what an earlier run with the same plan has finished in it.

    Raises:
        CannotWrite: the folder holds something else, or the pictures of another plan.
    """
    with writing(target):
        if target.is_file():
            raise CannotWrite(f"{target} is a file; give a folder for the pictures.")
        if not target.exists() or {path.name for path in target.iterdir()} <= {MARK}:  # new, or nothing drawn so far
            write_atomic(target / MARK, json.dumps(plan))
            return []
        try:
            earlier = json.loads((target / MARK).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise CannotWrite(f"{target} holds files that synth has not written; give a new or empty folder.") from None
        if other := [key for key in plan if earlier.get(key) != plan[key]]:
            before, now = told(earlier.get(other[0]), plan[other[0]])
            raise CannotWrite(
                f"{target} was drawn with other settings ({other[0]}: {before}, now {now}); give another --out, or repeat "
                "those settings to go on."
            )
        return list(finished(target))


def told(before: Any, now: Any) -> tuple[str, str]:
    """Two values of a plan that differ, in words; of makers the names, or where these are the same the first setting."""
    if not (isinstance(before, list) and isinstance(now, list)):
        return str(before), str(now)
    names = [", ".join(name for name, _ in makers) for makers in (before, now)]
    if names[0] != names[1]:
        return names[0], names[1]
    for (name, one), (_, other) in zip(before, now, strict=True):
        for key in one.keys() | other.keys():
            if one.get(key) != other.get(key):
                return f"{name} {key} {one.get(key)}", str(other.get(key))
    return names[0], names[1]


def finished(target: Path) -> Iterator[Row]:
    """Complete lines of the manifest whose files are there."""
    if not (target / MANIFEST).exists():
        return
    for line in (target / MANIFEST).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the line that was being written when the run was stopped
            continue
        if all((target / name).exists() for name in (*row["files"], row["mask"])):
            yield row


def several(normal: Sequence[Sample]) -> bool:
    return len({s.category for s in normal}) > 1


def written(target: Path, sample: Sample, index: int, seed: int, by_category: bool) -> Row:
    """Write one drawn sample; returns its line of the manifest."""
    above = f"{sample.category}/" if by_category else ""
    files = write_views(target, f"{above}test/{sample.defect}/{index:03d}", sample)
    mask = f"{above}ground_truth/{sample.defect}/{index:03d}_mask.png"
    assert sample.mask is not None
    write_atomic(target / mask, encode(sample.mask.read().astype(np.uint8) * 255))
    return {
        "index": index,
        "files": files,
        "mask": mask,
        "seed": seed,
        **dict(sample.made or {}),
        "version": __version__,
    }


def write_views(target: Path, place: str, sample: Sample) -> list[str]:
    """PLACE.png, or PLACE/VIEW.png where there are several views; returns the names."""
    names = []
    for view in sample.views.values():
        name = f"{place}.png" if len(sample.views) == 1 else f"{place}/{view.name}.png"
        write_atomic(target / name, png(view.read()))
        names.append(name)
    return names


def write_good(target: Path, normal: Sequence[Sample]) -> None:
    for index, sample in enumerate(normal):
        above = f"{sample.category}/" if several(normal) else ""
        place = f"{above}test/good/{index:03d}"
        if not (target / f"{place}.png").exists() and not (target / place).exists():
            write_views(target, place, sample)


def png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 or uint16 as a PNG file that reads back the same; grey where it has no colour."""
    if is_grey(picture):
        return encode(np.ascontiguousarray(picture[..., 0]), compress_level=3)
    if picture.dtype == np.uint8:
        return encode(picture, compress_level=3)
    # 16-bit colour, which Pillow does not write: header, one block of unfiltered big-endian rows, end.
    height, width = picture.shape[:2]
    rows = np.zeros((height, 1 + width * 6), np.uint8)
    rows[:, 1:] = np.ascontiguousarray(picture.astype(">u2")).view(np.uint8).reshape(height, -1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 3)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


# What a person sees.


def contact_sheet(target: Path, rows: Sequence[Row]) -> bytes:
    """A PNG page: for each maker a line of examples, each the whole picture with a frame and the place itself."""
    examples: dict[str, list[Row]] = {}
    for row in rows:
        examples.setdefault(row["maker"], []).append(row)
    shown = {
        name: [own[i * len(own) // COLUMNS] for i in range(COLUMNS)] if len(own) > COLUMNS else own
        for name, own in examples.items()
    }
    line, gap = 16, 6
    font = ImageFont.load_default(11)
    width = max(max(map(len, shown.values())) * (2 * TILE + gap), round(font.getlength(LEGEND))) + gap
    page = Image.new("RGB", (width + gap, len(shown) * (TILE + line + gap) + 2 * gap + line), (255, 255, 255))
    pen = ImageDraw.Draw(page)
    pen.text((gap, gap), LEGEND, fill=(90, 90, 90), font=font)
    for k, (name, chosen) in enumerate(shown.items()):
        top = 2 * gap + line + k * (TILE + line + gap)
        for j, row in enumerate(chosen):
            left = gap + j * (2 * TILE + gap)
            measured = row["measured"]
            label = f"{name}  {measured['longest']:.0f} px, contrast {measured['contrast']:.0f}"
            pen.text((left, top), label, fill=(0, 0, 0), font=font)
            picture = to_8bit(read_image(target / next((f for f in row["files"] if "image" in f), row["files"][0])))
            whole, part = tiles(picture, read_mask(target / row["mask"]))
            page.paste(Image.fromarray(whole), (left, top + line))
            page.paste(Image.fromarray(part), (left + TILE, top + line))
    return encode(np.asarray(page), compress_level=6)


def tiles(picture: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(TILE, TILE, 3) each: the whole picture with a frame around the mask, and the place of the mask alone."""
    height, width = picture.shape[:2]
    rows, columns = box_around(mask)
    scale = TILE / max(height, width)
    small = resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))
    whole = Image.new("RGB", (TILE, TILE), (255, 255, 255))
    whole.paste(Image.fromarray(small))
    frame = (columns.start * scale - 3, rows.start * scale - 3, columns.stop * scale + 2, rows.stop * scale + 2)
    ImageDraw.Draw(whole).rectangle(frame, outline=(255, 0, 0))
    longest = max(rows.stop - rows.start, columns.stop - columns.start)
    side = min(height, width, max(16, round(AROUND * longest)))
    top = int(np.clip((rows.start + rows.stop - side) // 2, 0, height - side))
    left = int(np.clip((columns.start + columns.stop - side) // 2, 0, width - side))
    return np.asarray(whole), resize(picture[top : top + side, left : left + side], (TILE, TILE))


def summary_of(
    target: Path,
    rows: Sequence[Row],
    sources: int,
    resumed: int,
    left_out: Mapping[int, tuple[str, str]],
    with_good: bool,
) -> dict[str, Any]:
    drawn = Counter(row["maker"] for row in rows)
    spans = {}
    for key in ("longest", "area", "contrast"):
        values = [float(row["measured"][key]) for row in rows]
        spans[key] = {"lowest": min(values), "median": median(values), "highest": max(values)}
    pictures = "1 picture" if len(rows) == 1 else f"{len(rows)} pictures"
    origin = "1 good one" if sources == 1 else f"{sources} good ones"
    words = [
        f"{pictures} with a drawn defect ({counted(drawn)}), from {origin}: {target}",
        f"Longest side {spanned(spans['longest'], 'pixels')}, contrast "
        f"{spanned(spans['contrast'], 'grey levels of 255')}; look at {target / SHEET}.",
    ]
    if left_out:
        lost = Counter(name for name, _ in left_out.values())
        _, why = next(iter(left_out.values()))
        words.append(f"{len(left_out)} could not be drawn ({counted(lost)}); the first because {why}")
    if not with_good:
        words.append("There are no good pictures among them; --with-good adds them, so that `evaluate` can compare.")
    return {"words": "\n".join(words), "out": str(target), "pictures": len(rows), "drawn": dict(drawn), "sources": sources,
            "resumed": resumed, "left_out": {str(index): why for index, (_, why) in left_out.items()},
            "measured": spans}  # fmt: skip


def counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in names.items())


def spanned(span: Mapping[str, float], unit: str) -> str:
    low, middle, high = (f"{span[key]:.0f}" for key in ("lowest", "median", "highest"))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit} (median {middle})"
