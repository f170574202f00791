"""Typed rules that cannot all hold: numbers, sizes, places, orders and pairs that exclude each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ._typed import RELATIONS, Rule, counted, measured, pairs_of, property_of, sized

Regions = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class _Limit:
    """So many objects of a label in a place.

    box: None for the whole picture; with rows, columns and a 0 behind it, any one cell of a grid in it.
    """

    rule: str
    low: int
    high: int | None
    box: tuple[float, ...] | None
    where: str

    def says(self) -> str:
        if self.high is None:
            return f"at least {self.low}"
        if self.low == self.high:
            return f"exactly {self.low}" if self.low else "none"
        return f"{self.low} to {self.high}" if self.low else f"at most {self.high}"


def contradictions(rules: Sequence[Rule], regions: Regions) -> Iterator[str]:
    """One sentence for each pair, or group, of sound typed rules that cannot all hold; not every such group is found."""
    limits: dict[str, list[_Limit]] = {}
    for rule in rules:
        if rule.form in ("count", "present", "absent"):
            limits.setdefault(str(rule.params[rule.form]), []).extend(_limits(rule, regions))
    for label, given in limits.items():
        yield from _numbers_that_clash(label, given)
    yield from _sizes_that_clash(rules)
    yield from _places_that_clash(rules, regions, limits)
    yield from _pairs_that_clash(rules, limits)


def _limits(rule: Rule, regions: Regions) -> list[_Limit]:
    low, high, cells = counted(rule)
    name = rule.params.get("in")
    box = regions[name] if name is not None else None
    where = f"in {name}" if name is not None else "in the picture"
    if cells is None:
        return [_Limit(rule.id, low, high, box, where)]
    number = cells[0] * cells[1]
    # The sum over a grid is a limit on the region; one cell is kept to compare grids of the same shape.
    whole = _Limit(rule.id, low * number, None if high is None else high * number, box, f"{where} ({number} cells)")
    return [whole, _Limit(rule.id, low, high, (*(box or ()), *cells, 0.0), f"in each of the {number} cells {where}")]


def _numbers_that_clash(label: str, limits: Sequence[_Limit]) -> Iterator[str]:
    told: set[frozenset[str]] = set()

    def is_new(rules: frozenset[str]) -> bool:
        return not any(fewer <= rules for fewer in told)

    for outer in limits:
        others = [other for other in limits if other is not outer and _within(other.box, outer.box)]
        for group in _apart(others):
            rules = frozenset({outer.rule, *(g.rule for g in group)})
            least = sum(g.low for g in group)
            if outer.high is not None and least > outer.high and is_new(rules):
                told.add(rules)
                yield _clash(label, outer, group, f"at least {least}" if len(group) > 1 else "")
            if not all(g.high is not None for g in group) or not _fills(group, outer.box):
                continue
            most = sum(g.high or 0 for g in group)
            if outer.low > most and is_new(rules):
                told.add(rules)
                yield _clash(label, outer, group, f"at most {most}" if len(group) > 1 else "")


def _clash(label: str, outer: _Limit, group: Sequence[_Limit], total: str) -> str:
    parts = ", ".join(f"{g.says()} {g.where} ({g.rule})" for g in group)
    names = " and ".join(dict.fromkeys([outer.rule, *(g.rule for g in group)]))
    sum_of = f", together {total}," if total else ""
    wanted = "no" if outer.high == 0 else outer.says()
    return (
        f"rules {names} contradict each other: {wanted} {label} {outer.where} ({outer.rule}), "
        f"but {parts}{sum_of} cannot both hold; correct one of them."
    )


def _within(inner: tuple[float, ...] | None, outer: tuple[float, ...] | None) -> bool:
    """Whether everything in one place is in the other, for certain: same units, or the whole picture."""
    if inner == outer:
        return True
    if inner is not None and len(inner) != 4:
        return False  # one cell of a grid: only compared with the same grid
    if outer is None:
        return True
    if inner is None or len(outer) != 4 or _fractions(inner) != _fractions(outer):
        return False
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _fractions(box: Sequence[float]) -> bool:
    return max(abs(v) for v in box) <= 1


def _disjoint(a: Sequence[float], b: Sequence[float]) -> bool:
    return _fractions(a) == _fractions(b) and (a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1])


def _apart(limits: Sequence[_Limit]) -> Iterator[tuple[_Limit, ...]]:
    """Groups of limits in places that do not overlap, small ones first; of many limits, only the pairs."""
    for size in range(1, min(len(limits), 2 if len(limits) > 12 else 6) + 1):
        for group in itertools.combinations(limits, size):
            boxes = [g.box for g in group]
            if size == 1 or all(a and b and _disjoint(a, b) for a, b in itertools.combinations(boxes, 2)):
                yield group


def _fills(group: Sequence[_Limit], outer: tuple[float, ...] | None) -> bool:
    """Whether places that do not overlap cover the outer one."""
    if len(group) == 1 and group[0].box == outer:
        return True
    boxes = [g.box for g in group]
    if any(box is None or len(box) != 4 for box in boxes) or (outer is None and not _fractions(boxes[0] or ())):
        return False
    whole = outer or (0.0, 0.0, 1.0, 1.0)
    return abs(sum(_area(box or ()) for box in boxes) - _area(whole)) <= 0.005 * _area(whole)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _sizes_that_clash(rules: Sequence[Rule]) -> Iterator[str]:
    given = [(r, sized(r)) for r in rules if r.form == "size"]
    for (a, range_a), (b, range_b) in itertools.combinations(given, 2):
        same = all(a.params.get(word) == b.params.get(word) for word in ("size", "in")) and measured(a) == measured(b)
        if not same or not isinstance(range_a, tuple) or not isinstance(range_b, tuple):
            continue
        for low, high in ((range_a[0], range_b[1]), (range_b[0], range_a[1])):
            if low is not None and high is not None and low > high:
                what = f"{measured(a)[0]} of {a.params['size']}"
                yield (
                    f"rules {a.id} and {b.id} contradict each other: {what} cannot be at least {low:g} "
                    f"and at most {high:g}; correct one of them."
                )


def _places_that_clash(
    rules: Sequence[Rule], regions: Regions, limits: Mapping[str, Sequence[_Limit]]
) -> Iterator[str]:
    placed = [r for r in rules if r.form == "place"]
    inside = [r for r in placed if "in" in r.params]
    for a, b in itertools.combinations(inside, 2):
        one, two = a.params["in"], b.params["in"]
        if a.params["place"] == b.params["place"] and _disjoint(regions[one], regions[two]):
            yield (
                f"rules {a.id} and {b.id} contradict each other: {a.params['place']} cannot be in {one} and in {two}, "
                "which do not overlap; correct one of them."
            )
    for rule in inside:
        label, home = rule.params["place"], rule.params["in"]
        for limit in limits.get(label, ()):
            box = limit.box
            if limit.low and box is not None and len(box) == 4 and _disjoint(box, regions[home]):
                yield (
                    f"rules {rule.id} and {limit.rule} contradict each other: every {label} is to be in {home}, "
                    f"but {limit.says()} {limit.where}; correct one of them."
                )
    yield from _orders_that_clash(placed)


def _orders_that_clash(placed: Sequence[Rule]) -> Iterator[str]:
    """Circles such as A left of B, B left of A."""
    for forward, backward in (("left_of", "right_of"), ("above", "below")):
        after: dict[str, dict[str, str]] = {}  # label -> label that comes after it -> rule
        for rule in placed:
            label = rule.params["place"]
            if forward in rule.params:
                after.setdefault(label, {})[rule.params[forward]] = rule.id
            elif backward in rule.params:
                after.setdefault(rule.params[backward], {})[label] = rule.id
        for start in list(after):
            path = _way_back(start, after)
            if path:
                names = " and ".join(dict.fromkeys(rule for _, rule in path))
                circle = f" {RELATIONS[forward]} ".join([start, *(label for label, _ in path)])
                yield f"rules {names} contradict each other: {circle} is a circle; correct one of them."
                break


def _way_back(start: str, after: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """The shortest way from a label to itself, as (label, rule) steps; empty when there is none."""
    ways = [[(label, rule)] for label, rule in after[start].items()]
    seen: set[str] = set()
    while ways:
        way = ways.pop(0)
        here = way[-1][0]
        if here == start:
            return way
        if here not in seen:
            seen.add(here)
            ways += [[*way, step] for step in after.get(here, {}).items()]
    return []


def _pairs_that_clash(rules: Sequence[Rule], limits: Mapping[str, Sequence[_Limit]]) -> Iterator[str]:
    matches = [(r, pairs_of(r)) for r in rules if r.form == "match"]
    for (a, one), (b, two) in itertools.combinations(matches, 2):
        if (a.params["match"], a.params["to"]) == (b.params["match"], b.params["to"]) and one and two:
            for key in [key for key in one if key in two and one[key] != two[key]]:
                yield (
                    f"rules {a.id} and {b.id} contradict each other: {key} of {a.params['match']} asks for {one[key]} and "
                    f"for {two[key]} of {a.params['to']}; correct one of them."
                )
    for rule, pairs in matches:
        label, name = property_of(rule, "to")
        if name != "count" or not pairs:
            continue
        for limit in limits.get(label, ()):
            fits = [v for v in pairs.values() if limit.low <= v and (limit.high is None or v <= limit.high)]
            if limit.box is None and not fits:
                yield (
                    f"rules {rule.id} and {limit.rule} contradict each other: {limit.says()} {label} {limit.where}, but "
                    f"the pairs ask for {', '.join(str(v) for v in pairs.values())}; correct one of them."
                )
