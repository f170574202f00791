"""The allow-list: every hostile program is rejected, every benign one accepted, with a line and a word of help."""

from __future__ import annotations

import ast
import builtins
import difflib
import warnings

import pytest

from anomalens.errors import WrongInput
from anomalens.reasoning.static_check import ast_hash, check

from .benign import PROGRAMS as BENIGN
from .benign import body
from .hostile import LEGAL
from .hostile import PROGRAMS as HOSTILE


def test_the_corpora_are_large_enough():
    assert len(set(HOSTILE.values())) >= 60
    assert len(set(BENIGN.values())) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_rejected(name):
    assert check(HOSTILE[name])


@pytest.mark.parametrize("name", BENIGN)
def test_benign_programs_are_accepted(name):
    assert check(BENIGN[name]) == ()


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        (body("import os\nreturn []"), 2, "import nothing"),
        (body("return image.fnd('a')"), 2, "did you mean find"),
        (body("return image.find('a')[0].colour"), 2, ".colour is not available"),
        (body("x = 1\nprint(x)\nreturn []"), 3, "print is not available; put measured values"),
        (body("return sqrt(2)"), 2, "math.sqrt"),
        (body("return 'a{}'.format(1)"), 2, "f-string"),
        (body("o = image.find('a')[0]\no.area = 1\nreturn []"), 3, "read-only"),
        (body("for _ in range(3):\n    pass\nreturn []"), 2, "underscore"),
        (body("return 2 ** 9"), 2, "at most 8"),
        (body("return 2 ** -9"), 2, "at most 8"),
        (body("return 1 << 65"), 2, "at most 64"),
        (body("return 1 << image.width"), 2, "at most 64"),
        (body("return 1000000000001"), 2, "1000000000000"),
        (body("return b'x'"), 2, "neither a number"),
        (body("raise OSError('x')"), 2, "raise one of ValueError"),
        (body("try:\n    pass\nexcept OSError:\n    pass"), 4, "except one of ValueError"),
        (body("def inner():\n    break"), 3, "outside loop"),
        ("\n\ndef check(image:\n    return []", 3, "not Python"),
        ("X = 1 + 1\ndef check(image):\n    return []", 1, "only constants"),
        ("X.y = 1\ndef check(image):\n    return []", 1, "only constants"),
        ("def other(image):\n    return []", 0, "must define one function check(image)"),
        ("def check(image, other=1):\n    return []", 1, "exactly one argument"),
        ("def check():\n    return []", 1, "exactly one argument"),
        ("", 0, "must define"),
    ],
)
def test_problems_name_the_line_and_say_what_helps(source, line, words):
    found = check(source)
    assert any(p.line == line and words in p.hint for p in found), found


def test_limits_are_exact():
    assert check("def check(image): return []".ljust(20_000)) == ()
    assert check("def check(image): return []".ljust(20_001))[0].rule == "size"
    # Module, FunctionDef, arguments, arg, Return, List, Load; then each element of the list is one node.
    ones = lambda n: f"def check(image): return [{','.join('1' * n)}]"  # noqa: E731
    assert check(ones(4_993)) == ()
    assert check(ones(4_994))[0].rule == "size"
    # Module, FunctionDef, Return, then lists; the innermost has its Load below it.
    deep = lambda n: f"def check(image): return {'[' * n}{']' * n}"  # noqa: E731
    assert check(deep(56)) == ()
    assert check(deep(57))[0].rule == "nesting"


@pytest.mark.parametrize(
    "numbers", ["10 ** 8", "x ** 8", "x ** 0.5", "x ** -8", "1 << 64", "x >> 3", "1000000000000", "-1e300"]
)
def test_numbers_at_the_limit_are_fine(numbers):
    assert check(body(f"x = 2\nreturn [{numbers}]")) == ()


@pytest.mark.parametrize(
    "text",
    [
        "-" * 19_990 + "1",
        "not " * 4_990 + "x",
        "a" + ".a" * 9_990,
        "a" + "()" * 9_990,
        "(" * 9_990,
        "\ud800",
        "\0",
        "1or " * 4_000,
    ],
)
def test_any_text_gets_an_answer_and_no_warning(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(text)


@pytest.mark.parametrize("name", LEGAL)
def test_what_only_limits_can_hold_is_accepted(name):
    assert check(LEGAL[name][0]) == ()


def test_nothing_is_compiled(monkeypatch):
    """The compiler, unlike the parser, takes all memory for some short texts, and crashes on others."""
    real = builtins.compile

    def parsed_only(source, filename, mode, flags=0, *more, **named):
        assert flags & ast.PyCF_ONLY_AST
        return real(source, filename, mode, flags, *more, **named)

    monkeypatch.setattr(builtins, "compile", parsed_only)
    for source in (*BENIGN.values(), *HOSTILE.values(), *(source for source, _ in LEGAL.values())):
        check(source)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("break", [2]),
        ("for i in (1,):\n    pass\nelse:\n    continue", [5]),
        ("while True:\n    def inner():\n        if True:\n            break\n    break", [5]),
        ("try:\n    continue\nexcept Exception:\n    break\nfinally:\n    break", [3, 5, 7]),
        (
            "for i in (1,):\n    try:\n        continue\n    except Exception:\n        break\n    else:\n        break\n"
            "    finally:\n        while i:\n            continue\n        else:\n            break",
            [],
        ),
    ],
)
def test_ways_out_of_a_loop_are_inside_one(lines, found):
    assert [p.line for p in check(body(lines)) if "outside loop" in p.hint] == found


def test_suggesting_names_takes_no_seconds(monkeypatch):
    """Comparing many long names with many others would; a program of usual size gets its suggestion."""
    compared, real = [], difflib.get_close_matches

    def counted(word, names, *more, **named):
        compared.append(len(word) * sum(map(len, names)))
        return real(word, names, *more, **named)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    for length, number in ((2, 1000), (20, 400), (100, 90), (4000, 2)):
        names = [f"{chr(97 + i % 26)}{i}".ljust(length, "x") for i in range(2 * number)]
        assert check(body(f"{' = '.join(names[:number])} = 1\nreturn [{', '.join(names[number:])}]"))
        assert sum(compared) < 3_000_000
        compared.clear()
    many = "\n".join(f"measured_{i} = {i}" for i in range(40))
    assert any("did you mean measured_7" in p.hint for p in check(body(f"{many}\nreturn [mesured_7]")))


def test_the_hash_is_that_of_the_program_and_not_of_its_looks():
    a = "def check(image):\n    return [image.width, 'a']  # comment\n"
    b = 'def check(image):\n\n  return [ image.width,\n   "a" ]'
    assert ast_hash(a) == ast_hash(b)
    for other in (
        a.replace("'a'", "'b'"),
        a.replace("'a'", ""),
        a.replace("'a'", "''"),
        a.replace("'a'", "1"),
        a.replace("width", "height"),
    ):
        assert ast_hash(other) != ast_hash(a)
    assert ast_hash("x = 1") != ast_hash("x = True") != ast_hash("x = 1.0")


def test_the_hash_is_the_same_on_every_python():
    """Written down from 3.10, 3.11, 3.12 and 3.13, which print their trees differently."""
    source = BENIGN["number formats"] + BENIGN["closures"] + BENIGN["errors caught"]
    assert ast_hash(source) == "0ba1f78cb77e501f6f5cb703e19b616c8ff9d3f7ac13a56ccacab54d4099007d"
    with pytest.raises(WrongInput, match="not Python"):
        ast_hash("def check(")
