"""The command line. `anomalens --help` loads click and nothing heavier; each command imports what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from .. import __version__
from ..errors import AnomalensError

REJECTED = 3  # exit code of --fail-on when something was found


class Sentence(click.ClickException):
    """One of our errors: its sentence on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"anomalens: {self.message}", err=True)


class Main(click.Group):
    """Turns our errors into a sentence and exit code 2; a bug keeps its traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except AnomalensError as error:
            raise Sentence(str(error)) from error
        except KeyboardInterrupt:
            click.echo("anomalens: stopped; run the same command again to go on where it stopped.", err=True)
            context.exit(130)


def options(*names: str) -> Callable[[Any], Any]:
    """Options that several commands share, declared once."""
    known = {
        "method": click.option("--method", metavar="NAME", help="Detector; `anomalens list` shows all."),
        "backbone": click.option("--backbone", metavar="NAME", help="tiny, tiny:int8, timm:NAME or timm:NAME@FILE."),
        "rate": click.option("--false-alarm-rate", "rate", type=float, metavar="A",
                             help="Share of good pictures that may be rejected [default: 0.01, or the lowest promised]."),
        "roi": click.option("--roi", type=click.Path(), metavar="MASK",
                            help="Picture whose non-zero pixels are the region of interest."),
        "memory": click.option("--limit-memory", metavar="SIZE", help="Memory that fitting may hold, e.g. 2GB."),
        "seed": click.option("--seed", type=int, default=0, show_default=True),
        "device": click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        "set": click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                            help="Any other setting of the method; `anomalens show NAME` lists them."),
        "tile": click.option("--tile", type=int, metavar="PIXELS", help="Cut large pictures into overlapping tiles."),
        "min_area": click.option("--min-area", type=int, default=4, show_default=True, metavar="PIXELS",
                                 help="Smallest region reported."),
        "maps": click.option("--maps/--no-maps", default=True, help="Write maps/*.png.", show_default=True),
        "fail_on": click.option("--fail-on", type=click.Choice(["reject", "review"]),
                                help=f"Exit with code {REJECTED} if any picture gets this verdict (or worse)."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."),
    }  # fmt: skip

    def apply(function: Any) -> Any:
        for name in reversed(names):
            function = known[name](function)
        return function

    return apply


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="anomalens")
def main() -> None:
    """Finds what does not belong in pictures of things.

    \b
    anomalens inspect NEW --good GOOD     which of the new pictures are bad, where, how sure
    anomalens demo                        the same on pictures it draws itself
    """


@main.command()
@click.argument("new", type=click.Path())
@click.option("--good", type=click.Path(), help="Folder of good pictures. Without it a zero-shot method is used.")
@click.option("--out", type=click.Path(), default="anomalens-report", show_default=True, help="Folder of the report.")
@click.option("--save-model", type=click.Path(), help="Also save the fitted detector here.")
@options("method", "backbone", "rate", "roi", "tile", "min_area", "memory", "seed", "device", "set", "maps",
         "fail_on", "json")  # fmt: skip
def inspect(new: str, good: str | None, out: str, save_model: str | None, fail_on: str | None, as_json: bool,
            **how: Any) -> None:  # fmt: skip
    """Learn from good pictures, judge new ones, write a report."""
    from . import tasks

    summary = tasks.inspect(new, good, out, save_model=save_model, quiet=as_json, **how)
    _conclude(summary, as_json, fail_on)


@main.command()
@click.argument("good", type=click.Path())
@click.option("--out", type=click.Path(), required=True, help="Folder of the saved detector.")
@options("method", "backbone", "roi", "tile", "memory", "seed", "device", "set", "json")
def fit(good: str, out: str, as_json: bool, **how: Any) -> None:
    """Learn from good pictures, calibrate and save the detector."""
    from . import tasks

    summary = tasks.fit(good, out, quiet=as_json, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])


@main.command()
@click.argument("model", type=click.Path())
@click.argument("good", type=click.Path())
@options("json")
def add(model: str, good: str, as_json: bool) -> None:
    """Extend a saved detector by more good pictures, without fitting again."""
    from . import tasks

    summary = tasks.add(model, good, quiet=as_json)
    click.echo(json.dumps(summary) if as_json else summary["words"])


@main.command()
@click.argument("model", type=click.Path())
@click.argument("new", type=click.Path())
@click.option("--out", type=click.Path(), default="anomalens-report", show_default=True, help="Folder of the report.")
@options("rate", "min_area", "device", "maps", "fail_on", "json")
def predict(model: str, new: str, out: str, fail_on: str | None, as_json: bool, **how: Any) -> None:
    """Judge new pictures with a saved detector, write a report."""
    from . import tasks

    _conclude(tasks.predict(model, new, out, quiet=as_json, **how), as_json, fail_on)


@main.command()
@click.argument("model", type=click.Path())
@click.argument("data", type=click.Path())
@click.option("--out", type=click.Path(), help="Also write the figures to this JSON file.")
@options("rate", "seed", "device", "json")
def evaluate(model: str, data: str, out: str | None, as_json: bool, **how: Any) -> None:
    """Measure a saved detector on a labelled folder: AUROC, AP, max-F1, AUPRO with 95 % intervals."""
    from . import tasks

    figures = tasks.evaluate(model, data, out, quiet=as_json, **how)
    click.echo(json.dumps(figures) if as_json else tasks.figures_table(figures))


@main.command()
@click.argument("name")
@click.argument("root", type=click.Path())
@click.option("--decode", is_flag=True, help="Read every picture and mask completely, not only their headers.")
@options("json")
def data(name: str, root: str, decode: bool, as_json: bool) -> None:
    """Check a local copy of a data set: counts, masks, unreadable files."""
    from .data_check import report

    click.echo(report(name, root, as_json, decode), nl=False)


@main.command(name="list")
@options("json")
def list_(as_json: bool) -> None:
    """All detectors, one line each."""
    from .catalogue import listing

    click.echo(listing(as_json), nl=False)


@main.command()
@click.argument("name")
@options("json")
def show(name: str, as_json: bool) -> None:
    """Card and settings of one detector (or backbone)."""
    from .catalogue import showing

    click.echo(showing(name, as_json), nl=False)


@main.command()
@click.option("--out", type=click.Path(), default="demo", show_default=True, help="Folder for pictures and report.")
@click.option("--category", default="cloth", show_default=True, help="What to draw.")
@options("seed", "json")
def demo(out: str, category: str, seed: int, as_json: bool) -> None:
    """Draw pictures, inspect them, evaluate: everything at once, offline."""
    from . import tasks

    result = tasks.demo(out, category, seed, quiet=as_json)
    click.echo(json.dumps(result) if as_json else result["words"])


def _conclude(summary: dict[str, Any], as_json: bool, fail_on: str | None) -> None:
    click.echo(json.dumps(summary) if as_json else summary["words"])
    counts = summary["counts"]
    found = counts["reject"] + (counts["review"] if fail_on == "review" else 0)
    if fail_on and found:
        sys.exit(REJECTED)


if __name__ == "__main__":
    main()
