"""What a generated program may be made of: an allow-list over its syntax tree.

    problems = check(source)          # () where the program is fine
    ast_hash(source)                  # the same for the same program, whatever its spaces and comments

A good source of messages for repairing a program, and a first line of defence. It is not the boundary that holds a hostile
program; that is the kernel's (`sandbox`).
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import WrongInput
from .program_api import BUILTINS, EXCEPTIONS, MATH, OBJECT_FIELDS, STAT_FIELDS, methods

ENTRY = "check"
LONGEST = 20_000  # characters
MOST_NODES = 5_000
DEEPEST = 60  # nodes from the module down to a leaf
LARGEST_POWER = 8
LARGEST_SHIFT = 64
LARGEST_INTEGER = 10**12
MOST_COMPARED = 200_000  # letters of unknown names times letters of known ones, to suggest the nearest

NODES = frozenset(
    getattr(ast, name)
    for name in (
        "Module", "FunctionDef", "Lambda", "arguments", "arg", "Return",
        "Assign", "AugAssign", "AnnAssign", "NamedExpr", "Expr",
        "If", "For", "While", "Break", "Continue", "Pass", "Assert", "Raise", "Try", "ExceptHandler",
        "ListComp", "SetComp", "DictComp", "GeneratorExp", "comprehension",
        "BoolOp", "BinOp", "UnaryOp", "Compare", "IfExp", "Call", "keyword", "Starred",
        "Attribute", "Subscript", "Slice", "Name", "Load", "Store",
        "Constant", "List", "Tuple", "Dict", "Set", "JoinedStr", "FormattedValue",
        "And", "Or", "Not", "Invert", "UAdd", "USub",
        "Add", "Sub", "Mult", "MatMult", "Div", "FloorDiv", "Mod", "Pow",
        "LShift", "RShift", "BitOr", "BitXor", "BitAnd",
        "Eq", "NotEq", "Lt", "LtE", "Gt", "GtE", "Is", "IsNot", "In", "NotIn",
    )
)  # fmt: skip
CONTAINER_METHODS = (
    "append", "extend", "insert", "pop", "remove", "index", "count", "sort", "reverse", "get", "items", "keys", "values",
    "copy", "add", "update", "union", "intersection", "difference", "lower", "upper", "strip", "split", "join",
    "startswith", "endswith", "replace", "isdigit",
)  # fmt: skip
ATTRIBUTES = frozenset(
    ("width", "height", "category", *methods(), *OBJECT_FIELDS, *STAT_FIELDS, *MATH, *CONTAINER_METHODS)
)
NAMES = frozenset((*BUILTINS, *EXCEPTIONS, "math"))

# Words for what models write most often.
NODE_HINTS = {
    ast.Import: "programs import nothing; math is there already",
    ast.ImportFrom: "programs import nothing; math is there already",
    ast.ClassDef: "use functions, tuples and dicts instead of classes",
    ast.With: "programs open nothing",
    ast.Global: "pass values as arguments and return them",
    ast.Nonlocal: "pass values as arguments and return them",
    ast.Delete: "build a new list or dict instead of deleting",
    ast.Yield: "return a list",
    ast.YieldFrom: "return a list",
}
NAME_HINTS = {
    "print": "; put measured values into the reason of a finding",
    "type": "; use isinstance",
    "format": "; use an f-string",
    "format_map": "; use an f-string",
    "getattr": "; write the attribute",
    "hasattr": "; every object has every field of the reference",
    "next": "; use a list and its first element",
    "iter": "; use a list",
}


@dataclass(frozen=True)
class Problem:
    """One thing that a program may not hold.

    line: from 1; 0 where the whole program is meant. rule: a short name, such as "attribute". hint: what to do instead.
    """

    line: int
    rule: str
    hint: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.hint}" if self.line else self.hint


def check(source: str) -> tuple[Problem, ...]:
    """All problems of a program, by line; () where it may be run. Never raises on any text.

    The program defines `check(image)`; besides, its top level holds functions and constants only. It is parsed and never
    compiled: a short text can make Python's compiler take all memory, or crash. What the compiler alone finds, such as
    two arguments of one name, the sandbox tells when the program runs.
    """
    if len(source) > LONGEST:
        return (Problem(0, "size", f"the program has {len(source)} characters; at most {LONGEST} are allowed"),)
    try:
        tree = _parse(source)
    except SyntaxError as error:
        return (Problem(error.lineno or 0, "syntax", f"not Python: {error.msg}"),)
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, lone surrogates; too deep for the parser
        return (Problem(0, "syntax", f"not Python: {str(error) or 'nested too deeply'}"),)
    size = _size_problem(tree)
    if size:  # the walks below are for trees of bounded size
        return (size,)
    found = [*_structure_problems(tree), *_node_problems(tree), *_loop_problems(tree.body)]
    return tuple(sorted(dict.fromkeys(found), key=lambda problem: problem.line))


def ast_hash(source: str) -> str:
    """SHA-256, in hex, of what the program says: comments, spaces and quotes do not count; any Python gives the same.

    Raises:
        WrongInput: the text is not Python.
    """
    try:
        text = json.dumps(_canonical(_parse(source)), separators=(",", ":"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise WrongInput(f"the program cannot be hashed, it is not Python: {error}; see static_check.check.") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():  # `1or 2` warns, once for each: a hostile text could fill the log
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _size_problem(tree: ast.Module) -> Problem | None:
    nodes, level, line = 0, [tree], 0
    for _ in range(DEEPEST):
        nodes += len(level)
        if nodes > MOST_NODES:
            return Problem(0, "size", f"the program has more than {MOST_NODES} syntax nodes; make it shorter")
        line = next((node.lineno for node in level if hasattr(node, "lineno")), line)
        level = [child for node in level for child in ast.iter_child_nodes(node)]  # type: ignore[misc]
        if not level:
            return None
    return Problem(line, "nesting", f"nested deeper than {DEEPEST} levels; use helper functions or names")


def _loop_problems(statements: list, in_loop: bool = False) -> Iterator[Problem]:
    """`break` and `continue` outside a loop, which Python's parser does not see."""
    for node in statements:
        if isinstance(node, (ast.Break, ast.Continue)) and not in_loop:
            yield Problem(node.lineno, "syntax", f"not Python: {type(node).__name__.lower()} outside loop")
        for field in ("body", "handlers", "orelse", "finalbody"):
            looping = field == "body" and isinstance(node, (ast.For, ast.While))
            inside = looping or (in_loop and not isinstance(node, ast.FunctionDef))
            yield from _loop_problems(getattr(node, field, []), inside)


def _structure_problems(tree: ast.Module) -> Iterator[Problem]:
    """What the top level must and must not hold."""
    entries = 0
    for i, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef):
            if node.name == ENTRY:
                entries += 1
                a = node.args
                if len(a.posonlyargs) + len(a.args) != 1 or a.vararg or a.kwarg or a.kwonlyargs or a.defaults:
                    yield Problem(node.lineno, "entry", f"{ENTRY} takes exactly one argument: def {ENTRY}(image)")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not all(isinstance(t, ast.Name) for t in targets) or not _is_constant(node.value):
                yield Problem(
                    node.lineno, "top level", "outside functions, only constants are assigned: NAME = number or text, "
                    "or a tuple, list or dict of them",
                )  # fmt: skip
        elif not (i == 0 and isinstance(node, ast.Expr) and _is_text(node.value)):  # a docstring does no harm
            yield Problem(
                getattr(node, "lineno", 0), "top level", "outside functions, only functions and constants are allowed"
            )
    if entries != 1:
        yield Problem(0, "entry", f"the program must define one function {ENTRY}(image); it defines {entries}")


def _node_problems(tree: ast.Module) -> Iterator[Problem]:
    known = NAMES | _bound(tree)
    near = _comparable(tree, known)
    annotations = {id(n) for part in _annotations(tree) for n in ast.walk(part)}  # never evaluated: any name will do
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if type(node) not in NODES:
            name = type(node).__name__
            if name in ("Del", "alias", "withitem", "match_case") or (name.startswith("Match") and name != "Match"):
                continue  # its statement is reported
            yield Problem(line, "syntax not allowed", NODE_HINTS.get(type(node), f"{name} is not part of a program"))
        for name in _identifiers(node):
            if name.startswith("_"):
                yield Problem(line, "name", f"{name} starts with an underscore; choose another name")
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name not in known and id(node) not in annotations:
                if not name.startswith("_"):
                    yield Problem(line, "name", f"{name} is not available{_nearest(name, near)}")
            case ast.Attribute(attr=name, ctx=ctx):
                if not isinstance(ctx, ast.Load):
                    yield Problem(line, "attribute", f".{name} cannot be assigned; objects are read-only")
                elif name not in ATTRIBUTES:
                    yield Problem(line, "attribute", f".{name} is not available{_nearest(name, ATTRIBUTES)}")
            case ast.Constant(value=value):
                yield from _constant_problems(value, line)
            case ast.BinOp(op=op, right=right) | ast.AugAssign(op=op, value=right):
                yield from _operator_problems(op, right, line)
            case ast.FunctionDef(decorator_list=[first, *_]):
                yield Problem(first.lineno, "decorator", "functions take no decorators")
            case ast.Raise(exc=exc) if exc is not None:
                raised = exc.func if isinstance(exc, ast.Call) else exc
                if not _is_exception(raised):
                    yield Problem(line, "exception", f"raise one of {', '.join(EXCEPTIONS)}")
            case ast.ExceptHandler(type=kind):
                kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
                if not kinds or not all(map(_is_exception, kinds)):
                    yield Problem(line, "exception", f"name what is caught: except one of {', '.join(EXCEPTIONS)}")


def _identifiers(node: ast.AST) -> Iterator[str]:
    """Every name that a node binds or uses; attributes have their own rule."""
    for field in ("id", "name", "arg"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield value


def _bound(tree: ast.Module) -> set[str]:
    """Every name that the program binds anywhere."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.ExceptHandler(name=str(name)):
                found.add(name)
    return found


def _comparable(tree: ast.Module, known: frozenset[str]) -> frozenset[str]:
    """The names to suggest instead of unknown ones: all that are known, or fewer where comparing would take seconds."""
    unknown = sum(len(node.id) for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id not in known)
    return known if unknown * sum(map(len, known)) < MOST_COMPARED else NAMES


def _annotations(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            part = getattr(node, field, None)
            if part is not None:
                yield part


def _constant_problems(value: object, line: int) -> Iterator[Problem]:
    if not isinstance(value, (str, int, float, bool, type(None))):
        yield Problem(line, "literal", f"{value!r:.30} is neither a number, a text, a truth value nor None")
    elif isinstance(value, int) and value > LARGEST_INTEGER:
        yield Problem(line, "literal", f"whole numbers above {LARGEST_INTEGER} are not allowed")


def _operator_problems(op: ast.operator, right: ast.expr, line: int) -> Iterator[Problem]:
    value = _number(right)
    if isinstance(op, ast.Pow) and (value is None or abs(value) > LARGEST_POWER):
        yield Problem(line, "power", f"the exponent of ** must be a number written out, at most {LARGEST_POWER}")
    if isinstance(op, (ast.LShift, ast.RShift)) and (value is None or abs(value) > LARGEST_SHIFT):
        yield Problem(line, "shift", f"the width of a shift must be a number written out, at most {LARGEST_SHIFT}")


def _number(node: ast.expr) -> float | None:
    """The number that a literal stands for, with its sign; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        node = node.operand  # the rules look at the size alone
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) else None


def _is_constant(node: ast.expr | None) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float())):
            return True
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_constant, parts))
        case ast.Dict(keys=keys, values=values):
            return all(map(_is_constant, keys)) and all(map(_is_constant, values))
    return False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_exception(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Name) and node.id in EXCEPTIONS


def _nearest(name: str, known: frozenset[str]) -> str:
    """The end of a sentence that says what to write instead of a name; "" where nothing comes to mind."""
    if name in NAME_HINTS:
        return NAME_HINTS[name]
    if name in MATH:
        return f"; did you mean math.{name}?"
    near = difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _canonical(node: object) -> object:
    """A tree as lists. Empty fields are left out, because Python versions differ in which empty fields a node has."""
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.JoinedStr):  # 3.12 puts empty texts between its parts
        return ["JoinedStr", [_canonical(part) for part in node.values if getattr(part, "value", None) != ""]]
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return [type(node).__name__, *([name, _canonical(value)] for name, value in fields)]
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    return node
