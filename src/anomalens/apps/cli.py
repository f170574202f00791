"""The command line. `anomalens --help` loads click and nothing heavier; each command imports what it needs."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import AnomalensError, MissingExtra
from ..registry import PACKAGE

REJECTED = 3  # exit code of --fail-on when something was found
INCOMPLETE = 4  # exit code of bench when cells failed
GO_ON = ("inspect", "fit", "predict", "demo", "bench", "stress", "rules", "train-aux")  # stopped, they keep their work
EXTRAS = {
    "torch": "torch", "torchvision": "torch", "timm": "torch", "onnx": "torch", "onnxscript": "torch",
    "open_clip": "clip", "diffusers": "diffusion", "transformers": "diffusion", "httpx": "llm",
}  # fmt: skip


class Sentence(click.ClickException):
    """One of our errors: its sentence on stderr, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"anomalens: {self.message}", err=True)


class Main(click.Group):
    """Turns our errors into a sentence and exit code 2; a bug keeps its traceback."""

    group_class = type  # groups below it list their commands as it does

    def invoke(self, context: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _said(warnings.showwarning)
                return super().invoke(context)
        except AnomalensError as error:
            raise Sentence(str(error)) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            needs = f"this needs {error.name}, which is not installed"
            raise Sentence(f"{needs}: pip install 'anomalens[{extra}]'.") from error
        except KeyboardInterrupt:
            kept = context.find_root().invoked_subcommand in GO_ON
            more = "; run the same command again to go on where it stopped" if kept else ""
            click.echo(f"anomalens: stopped{more}.", err=True)
            context.exit(130)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """In the order of their use, each with its whole first sentence."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(200)) for name, one in self.commands.items()])


def _said(usual: Callable[..., None]) -> Callable[..., None]:
    """Our own warnings as a sentence; those of other libraries as Python shows them."""

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any) -> None:
        if issubclass(category, UserWarning) and PACKAGE in Path(filename).parents:
            click.echo(f"anomalens: {message}", err=True)
        else:
            usual(message, category, filename, *more)

    return show


def options(*names: str) -> Callable[[Any], Any]:
    """Options that several commands share, declared once."""
    known = {
        "method": click.option("--method", metavar="NAME", help="Detector; `anomalens list` shows all, auto chooses."),
        "backbone": click.option("--backbone", metavar="NAME", help="tiny, tiny:int8, timm:NAME, clip:NAME; NAME@FILE."),
        "object": click.option("--object", "thing", metavar="NAME",
                               help="What the thing is called, for methods that read sentences [default: its category]."),
        "rate": click.option("--false-alarm-rate", "rate", type=float, metavar="A",
                             help="Share of good pictures that may be rejected [default: 0.01, or the lowest promised]."),
        "roi": click.option("--roi", type=click.Path(), metavar="MASK",
                            help="Picture whose non-zero pixels are the region of interest."),
        "memory": click.option("--limit-memory", metavar="SIZE", help="Memory that fitting may hold, e.g. 2GB."),
        "seed": click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        "device": click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        "set": click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                            help="Any other setting of the method; `anomalens show NAME` lists them."),
        "tile": click.option("--tile", type=click.IntRange(min=32), metavar="PIXELS",
                             help="Cut large pictures into overlapping tiles."),
        "min_area": click.option("--min-area", type=click.IntRange(min=1), default=4, show_default=True, metavar="PIXELS",
                                 help="Smallest region reported."),
        "maps": click.option("--maps/--no-maps", default=True, help="Write maps/*.png.", show_default=True),
        "fail_on": click.option("--fail-on", type=click.Choice(["reject", "review"]),
                                help=f"Exit with code {REJECTED} if any picture gets this verdict (or worse)."),
        "model": click.option("--model", "asked", metavar="NAME", help="Language model to ask, as its server calls it."),
        "base_url": click.option("--base-url", default="", metavar="URL",
                                 help="Its server (chat completions); there is no default."),
        "key_env": click.option("--key-env", default="", metavar="NAME", help="Environment variable with the key."),
        "dry_run": click.option("--dry-run", is_flag=True, help="Ask nothing; say what would be sent."),
        "explain": click.option("--explain", is_flag=True, help="Have a vision model say what is wrong with flagged ones."),
        "context": click.option("--context", default="", metavar="TEXT", help="What it should know of the thing."),
        "told": click.option("--rules", "told", multiple=True, metavar="TEXT",
                             help="What a normal one satisfies; may be repeated."),
        "parser": click.option("--parser", metavar="NAME", help="What finds the parts [default: parts]; see docs/rules.md."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."),
    }  # fmt: skip

    def apply(function: Any) -> Any:
        for name in reversed(names):
            function = known[name](function)
        return function

    return apply


EXPLAIN = ("explain", "model", "base_url", "key_env", "context", "told", "dry_run")


def explaining(how: dict[str, Any]) -> Any:
    """Takes the options of EXPLAIN out of `how`: as an `Explain`, or None where nothing is to be explained."""
    explain, asked, base_url, key_env, context, told, dry_run = (
        how.pop(name) for name in ("explain", "asked", "base_url", "key_env", "context", "told", "dry_run")
    )
    if not explain:
        given = {"--model": asked, "--base-url": base_url, "--key-env": key_env, "--context": context, "--rules": told,
                 "--dry-run": dry_run}  # fmt: skip
        stray = [name for name, value in given.items() if value]
        if stray:
            raise click.UsageError(f"{stray[0]} goes with --explain.")
        return None
    from .explain import Explain

    if not dry_run and find_spec("httpx") is None:  # before hours of judging, not after them
        raise MissingExtra("--explain asks a language model, which needs: pip install 'anomalens[llm]'.")
    return Explain(asked or "", base_url, key_env, context, told, dry_run)


class ManyWords(click.Command):
    """Lets --data and --validate take several words: `--data A B` is `--data A --data B`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in ("--data", "--validate") else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(context, spread)


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
@options("method", "object", "backbone", "rate", "roi", "tile", "min_area", "memory", "seed", "device", "set", "maps",
         "fail_on", *EXPLAIN, "json")  # fmt: skip
def inspect(new: str, good: str | None, out: str, save_model: str | None, fail_on: str | None, as_json: bool,
            **how: Any) -> None:  # fmt: skip
    """Learn from good pictures, judge new ones, write a report."""
    from . import tasks

    how["explain"] = explaining(how)

    summary = tasks.inspect(new, good, out, save_model=save_model, quiet=as_json, **how)
    _conclude(summary, as_json, fail_on)


@main.command()
@click.argument("good", type=click.Path())
@click.option("--out", type=click.Path(), required=True, help="Folder of the saved detector.")
@options("method", "object", "backbone", "roi", "tile", "memory", "seed", "device", "set", "json")
def fit(good: str, out: str, as_json: bool, **how: Any) -> None:
    """Learn from good pictures, calibrate and save the detector."""
    from . import tasks

    summary = tasks.fit(good, out, quiet=as_json, **how)
    if tasks.rank() == 0:
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
@options("object", "rate", "min_area", "device", "maps", "fail_on", *EXPLAIN, "json")
def predict(model: str, new: str, out: str, fail_on: str | None, as_json: bool, **how: Any) -> None:
    """Judge new pictures with a saved detector, write a report."""
    from . import tasks

    how["explain"] = explaining(how)
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
@click.option("--setting", metavar="NAME", help="full-shot (also: unsupervised), few-shot, zero-shot, ...")
@click.option("--modality", metavar="NAME", help="What it looks at: image, lights, ...")
@click.option("--level", metavar="NAME", help="What it finds: structural or semantic.")
@click.option("--family", metavar="NAME", help="How it works: memory, gaussian, distillation, vision-language, ...")
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Any field of a card; may be repeated.")
@options("json")
def list_(setting: str | None, modality: str | None, level: str | None, family: str | None, where: tuple[str, ...],
          as_json: bool) -> None:  # fmt: skip
    """Detectors, one line each: all, or those whose card says so."""
    from .catalogue import listing

    named = {"settings": setting, "needs": modality, "levels": level, "family": family}
    wanted = [f"{field}={value}" for field, value in named.items() if value]
    click.echo(listing(as_json, [*wanted, *where]), nl=False)


@main.command()
@click.argument("data", type=click.Path(), required=False)
@click.option("--normals", type=int, metavar="N", help="Good pictures [default: counted in DATA].")
@click.option("--abnormals", type=int, metavar="N", help="Labelled bad pictures to learn from [default: counted].")
@click.option("--train-clean", type=click.Choice(["yes", "unknown"]), help="Are all good pictures good? [default: yes]")
@click.option("--categories", type=int, metavar="N", help="Kinds of things to serve [default: counted].")
@click.option("--unified", is_flag=True, help="One model for all categories.")
@click.option(
    "--view",
    "views",
    multiple=True,
    type=click.Choice(["image", "lights", "points", "depth", "video", "series"]),
    help="What there is of each thing; may be repeated [default: found].",
)
@click.option("--anomaly", type=click.Choice(["structural", "semantic", "both"]), help="What is looked for.")
@click.option("--surface", type=click.Choice(["texture", "object"]), help="[default: measured]")
@click.option("--pose", type=click.Choice(["aligned", "small", "free"]), help="How things lie [default: measured].")
@click.option("--imaging", multiple=True, type=click.Choice(["uneven-light", "blur", "noise"]), help="May be repeated.")
@click.option("--test-batch", type=int, metavar="N", help="Pictures that may be judged together [default: counted].")
@click.option("--abnormal-share", type=float, metavar="S", help="Share of bad ones among these [default: 0.2].")
@click.option("--text", type=click.Choice(["none", "class-name", "expert"]), help="What you can write.")
@click.option(
    "--rules",
    is_flag=False,
    flag_value="yes",
    type=click.Choice(["no", "yes", "with-objects"]),
    help="Are there written rules; can the parts they name be marked?",
)
@click.option("--need", multiple=True, type=click.Choice(["score", "map", "text"]), help="[default: score, map]")
@click.option("--gpu", type=click.Choice(["none", "fit", "both"]), help="[default: looked for]")
@click.option("--latency-ms", type=float, metavar="MS", help="Allowed for one picture.")
@click.option("--storage-mb", type=float, metavar="MB", help="Allowed for a fitted model.")
@click.option("--online", is_flag=True, help="Models on other machines may be asked.")
@click.option("--commercial", is_flag=True, help="Licences of weights must allow commercial use.")
@click.option("--with-weights", is_flag=True, help="As if all weights and optional libraries were on this machine.")
@options("json")
def recommend(data: str | None, as_json: bool, online: bool, **given: Any) -> None:
    """The best three methods for the pictures in DATA (or for what the options say), why, and what to type next."""
    from .recommend import recommending

    click.echo(recommending(data, as_json, offline=not online, **given), nl=False)


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


@main.command()
@click.argument("plan", type=click.Path(), required=False)
@click.option("--out", type=click.Path(), default="anomalens-bench", show_default=True, help="Folder of results.jsonl.")
@click.option("--method", multiple=True, metavar="NAME", help="Detector to compare; may be repeated, as the next four.")
@click.option("--data", multiple=True, metavar="[READER=]ROOT", help="Folder of labelled pictures [reader: folder].")
@click.option("--category", multiple=True, metavar="NAME", help="[default: all]")
@click.option(
    "--shots", multiple=True, metavar="K", help="Good pictures to learn from, a number or full [default: full]."
)
@click.option("--backbone", multiple=True, metavar="NAME", help="For every method that looks through one.")
@click.option("--seeds", type=int, metavar="N", help="Seeds 0 to N - 1 [default: 1].")
@click.option(
    "--robustness",
    is_flag=False,
    flag_value="rad-lite",
    metavar="[SUITE]",
    help="Disturb the test pictures too: rad-lite (if none is named), full or smoke.",
)
@click.option("--mode", metavar="MODE", help="What learns from disturbed pictures: shift (none), matched or mixed.")
@click.option("--limit", type=int, metavar="N", help="At most N good and N anomalous test pictures.")
@click.option(
    "--processes", type=int, metavar="N", help="Jobs at once, each in a process of its own [default: in this one]."
)
@click.option(
    "--logibench",
    "logical",
    metavar="[READER=]ROOT",
    help="Instead: rules on logical anomalies; MVTec LOCO AD with annotations, or procedural-logic=, drawn ones. "
    "--mode is oracle, parsed or both. The options from here on belong to it.",
)
@click.option("--annotations", type=click.Path(), metavar="PATH", help="Of MVTec LOCO AD [default: ROOT/annotations].")
@click.option(
    "--rules", "rules_from", type=click.Path(), metavar="PATH", help="A file, or a folder with CATEGORY.yaml."
)
@click.option(
    "--parser", metavar="NAME|PATH", help="What finds the things in mode parsed; a file holds its settings too."
)
@click.option("--judge", multiple=True, metavar="NAME", help="Of reasons: rule, llm, human=FILE; may be repeated.")
@click.option(
    "--attempts",
    type=click.IntRange(min=0),
    metavar="M",
    help="Programs asked of the model for each category [default: 10]; 0 judges by typed rules.",
)
@click.option(
    "--model", metavar="NAME", help="Language model that writes the programs; without it the rules are typed."
)
@click.option("--base-url", metavar="URL", help="Address of its server; without it --cache holds recorded answers.")
@click.option("--key-env", metavar="NAME", help="Environment variable with the key of the server.")
@click.option("--cache", type=click.Path(), metavar="PATH", help="Folder of the model's answers.")
@options("json")
def bench(plan: str | None, out: str, as_json: bool, logical: str | None, **how: Any) -> None:
    """Compare methods on labelled data, as a PLAN (.toml or .json) or the options say; stopped, it goes on."""
    own = {name: how.pop(name) for name in ("annotations", "rules_from", "parser", "judge", "attempts", "model",
                                            "base_url", "key_env", "cache")}  # fmt: skip
    if logical is not None:
        from . import logibench

        summary = logibench.of_options(logical, out, plan, how, own, quiet=as_json)
    else:
        from .bench import bench as run_bench

        if given := [name for name, value in own.items() if value not in (None, ())]:
            word = given[0].replace("rules_from", "rules").replace("_", "-")
            raise click.UsageError(f"--{word} belongs to --logibench; give that too, or leave it out.")
        summary = run_bench(plan, out, quiet=as_json, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])
    if summary["failed"]:
        sys.exit(INCOMPLETE)


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path())
@click.option("--out", type=click.Path(), default="benchmark-report", show_default=True, help="Folder of the report.")
@click.option("--metric", default="", metavar="NAME", help="Headline [default: image.auroc].")
@click.option("--baseline", default="", metavar="METHOD", help="What losses are compared with [default: patchcore].")
@click.option("--pictures", type=click.Path(), metavar="PATH", help="Picture to show disturbances on [default: drawn].")
@options("json")
def report(results: tuple[str, ...], out: str, as_json: bool, **how: Any) -> None:
    """Turn results of `bench` into a page, and into tables to publish (Markdown, LaTeX, CSV, JSON)."""
    from . import bench_report

    summary = bench_report.report(results, out, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])


@main.command()
@click.argument("good", metavar="GOOD|READER=ROOT")
@click.option("--out", type=click.Path(), required=True, help="Folder to write, as MVTec AD is laid out.")
@click.option(
    "--maker",
    "makers",
    multiple=True,
    metavar="NAME,...",
    help="What is drawn, in turn; NAME:KEY=VALUE,... sets more [default: scratch,stain,perlin,nsa].",
)
@click.option("--n", type=click.IntRange(min=1), default=100, show_default=True, help="Pictures to draw.")
@click.option("--size", metavar="LOW..HIGH", help="Longest side, as a share of the picture's short side.")
@click.option("--severity", metavar="LOW..HIGH", help="Strength, above 0 to 1.")
@click.option("--where", metavar="WHERE", help="Only there: bright, dark, or a mask picture.")
@click.option("--with-good", is_flag=True, help="Also write the good pictures as they are, to test/good.")
@options("seed", "json")
def synth(good: str, out: str, as_json: bool, **how: Any) -> None:
    """Draw defects into GOOD pictures: a labelled folder with masks, a manifest and a contact sheet."""
    from .synth import synth as draw

    summary = draw(good, out, quiet=as_json, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])


@main.command()
@click.argument("model", type=click.Path())
@click.argument("good", type=click.Path())
@click.option("--out", type=click.Path(), default="stress-report", show_default=True, help="Folder of the report.")
@click.option(
    "--maker",
    "makers",
    multiple=True,
    metavar="NAME,...",
    help="What is drawn [default: scratch,stain,perlin].",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=float,
    metavar="S",
    help="Longest side as a share of the picture's short side; may be repeated [default: 0.03 to 0.48].",
)
@click.option(
    "--severity",
    "severities",
    multiple=True,
    type=float,
    metavar="V",
    help="Strength above 0, at most 1; may be repeated [default: 0.1 to 1].",
)
@click.option(
    "--pictures", type=click.IntRange(min=1), metavar="N", help="Pictures for each size and severity [default: 12]."
)
@click.option("--where", metavar="WHERE", help="Only there: bright, dark, or a mask picture.")
@click.option("--wanted", type=float, metavar="P", help="Probability of detection asked for [default: 0.9].")
@click.option(
    "--mm-per-pixel", type=float, metavar="MM", help="Scale of the pictures, to say sizes in millimetres too."
)
@options("rate", "seed", "device", "json")
def stress(model: str, good: str, out: str, as_json: bool, **how: Any) -> None:
    """Draw defects of graded size and contrast on GOOD pictures that MODEL has not seen: which does it find?"""
    from .stress import stress as run_stress

    given = {key: value for key, value in how.items() if value not in (None, ())}
    facts = run_stress(model, good, out, quiet=as_json, **given)
    click.echo(json.dumps(facts) if as_json else facts["words"])


@main.group()
def rules() -> None:
    """Judge by written rules: draft, check, compile, run."""


@rules.command(name="draft")
@click.argument("good", type=click.Path())
@click.option("--out", type=click.Path(), default="rules.yaml", show_default=True, help="File of the rules.")
@click.option("--labels", metavar="NAME,...", help="Parts the rules may speak of [default: what is found].")
@click.option("--category", metavar="NAME", help="What the product is called [default: the folder].")
@click.option("--pictures", type=click.IntRange(min=1), default=5, show_default=True, help="Good pictures to send.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="For an answer; a model without a GPU may need 600.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Of an answer; a model that thinks first may need 8192.",
)
@options("model", "base_url", "key_env", "dry_run", "json")
def draft_rules(good: str, out: str, asked: str | None, as_json: bool, **how: Any) -> None:
    """Have a vision model that sees GOOD pictures propose rules, for you to read and correct."""
    from .rules import draft

    summary = draft(good, out, model=asked, quiet=as_json, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])


@rules.command(name="check")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--labels", metavar="NAME,...", help="What the parser can name [default: the labels in the file].")
@options("json")
def check_rules(files: tuple[str, ...], labels: str | None, as_json: bool) -> None:
    """Say what is wrong with rules (.yaml, .json) and programs (.py), one line each; exit code 2 if anything is."""
    from .rules import check

    summary = check(files, labels)
    click.echo(json.dumps(summary) if as_json else summary["words"])
    if summary["problems"]:
        sys.exit(Sentence.exit_code)


@rules.command(name="compile")
@click.argument("file", metavar="RULES", type=click.Path())
@click.argument("good", type=click.Path(), required=False)
@click.option("--out", type=click.Path(), default="program.py", show_default=True, help="File of the program.")
@options("parser", "set", "model", "base_url", "key_env", "dry_run", "seed", "json")
def compile_rules(file: str, good: str | None, out: str, asked: str | None, as_json: bool, **how: Any) -> None:
    """Make the program that checks RULES and try it on GOOD pictures; rules in words need a model."""
    from .rules import compile

    summary = compile(file, good, out, model=asked, quiet=as_json, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])


@rules.command(name="run")
@click.argument("file", metavar="RULES", type=click.Path())
@click.argument("new", type=click.Path())
@click.option("--good", type=click.Path(), help="Folder of good pictures: what is usual, and the promise.")
@click.option("--out", type=click.Path(), default="anomalens-report", show_default=True, help="Folder of the report.")
@click.option("--program", type=click.Path(), help="Program of these rules (.py) [default: made from typed rules].")
@click.option("--save-model", type=click.Path(), help="Also save the fitted detector here.")
@options("parser", "model", "base_url", "key_env", "rate", "min_area", "seed", "set", "maps", "fail_on", "json")
def run_rules(file: str, new: str, good: str | None, out: str, asked: str | None, fail_on: str | None, as_json: bool,
              **how: Any) -> None:  # fmt: skip
    """Judge NEW pictures by RULES: which rule is broken, where, and why. RULES may be a program (.py)."""
    from .rules import run

    _conclude(run(file, new, good, out, model=asked, quiet=as_json, **how), as_json, fail_on)


@main.command(name="train-aux", cls=ManyWords)
@click.argument("method")
@click.option("--data", multiple=True, required=True, metavar="READER=ROOT...", help="Annotated data to learn from.")
@click.option("--out", type=click.Path(), required=True, help="File of the adapter, .safetensors.")
@click.option("--validate", multiple=True, metavar="READER=ROOT...", help="Keep the epoch that is best on these.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data [default: the method's].")
@click.option("--recipe", metavar="NAME", help="Where the method knows several: published is what its authors did.")
@options("backbone", "seed", "device", "set", "json")
def train_aux_(method: str, data: tuple[str, ...], out: str, as_json: bool, **how: Any) -> None:
    """Train what a zero-shot METHOD needs, on annotated pictures of other things."""
    from .train_aux import train_aux

    summary = train_aux(method, data, out, quiet=as_json, **how)
    click.echo(json.dumps(summary) if as_json else summary["words"])


def _conclude(summary: dict[str, Any], as_json: bool, fail_on: str | None) -> None:
    click.echo(json.dumps(summary) if as_json else summary["words"])
    counts = summary["counts"]
    found = counts["reject"] + (counts["review"] + counts["unreadable"] if fail_on == "review" else 0)
    if fail_on and found:
        sys.exit(REJECTED)


if __name__ == "__main__":
    main()
