"""The typed rule forms, as functions of a program.

`rules.compile` copies the functions that a rule set needs, word for word, into the program it writes. So everything here
keeps to the contract of programs: no import, no underscore in front of a name, only the API of `program_api.Image`.
"""


def expected(low, high):
    """How many, in words; high is None where there is no upper limit."""
    if high is None:
        return f"at least {low:g}"
    if low == high:
        return f"exactly {low:g}" if low else "none"
    return f"{low:g} to {high:g}" if low else f"at most {high:g}"


def count(image, rule, type, label, low, high, place="", severity=1.0):
    """So many objects of a label in the picture, or in a region (by their centres)."""
    things = image.find(label)
    where = "in the picture"
    boxes = []
    if place:
        box = image.region(place)
        things = [thing for thing in things if image.in_region(thing, box)]
        where = f"in {place}"
        boxes = [box]
    number = len(things)
    if number >= low and (high is None or number <= high):
        return []
    reason = f"{label}: {number} {where}, expected {expected(low, high)}"
    if number < low:  # what is missing has no mask: name the box where it should be
        return [image.finding(type, reason, rule=rule, boxes=boxes or [usual_box(image, label)], severity=severity)]
    return [image.finding(type, reason, rule=rule, objects=things, severity=severity)]


def count_in_cells(image, rule, type, label, low, high, place, rows, cols, severity=1.0):
    """So many objects of a label in each cell of a grid."""
    outer = image.region(place) if place else [0, 0, image.width, image.height]
    found = []
    for i, box in enumerate(image.cells(outer, rows, cols)):
        things = [thing for thing in image.find(label) if image.in_region(thing, box)]
        number = len(things)
        if number >= low and (high is None or number <= high):
            continue
        cell = f"row {i // cols + 1}, column {i % cols + 1} of {place or 'the picture'}"
        reason = f"{label}: {number} in {cell}, expected {expected(low, high)}"
        if number < low:
            found.append(image.finding(type, reason, rule=rule, boxes=[box], severity=severity))
        else:
            found.append(image.finding(type, reason, rule=rule, objects=things, severity=severity))
    return found


def usual_box(image, label):
    """Where objects of a label are in normal pictures; the whole picture where that was not learnt."""
    try:
        left, top = image.stat(label, "x0").min, image.stat(label, "y0").min
        return [left, top, image.stat(label, "x1").max, image.stat(label, "y1").max]
    except KeyError:
        return [0, 0, image.width, image.height]


def size(image, rule, type, label, field, measure, low, high, place="", severity=1.0):
    """A number of every object of a label, in the picture or in a region, lies in a range; None for an open side."""
    found = []
    for thing in image.find(label):
        if place and not image.in_region(thing, place):
            continue
        value = measure(thing)
        if value is None:
            reason = f"{label}: {field} is not known, expected a number"
        elif low is not None and value < low:
            reason = f"{label}: {field} is {value:.4g}, expected at least {low:g}"
        elif high is not None and value > high:
            reason = f"{label}: {field} is {value:.4g}, expected at most {high:g}"
        else:
            continue
        found.append(image.finding(type, reason, rule=rule, objects=[thing], severity=severity))
    return found


def usual(image, rule, type, label, field, measure, k, severity=1.0):
    """A number of every object of a label lies where it does in normal pictures."""
    found = []
    for thing in image.find(label):
        stat = image.stat(label, field)
        value = measure(thing)
        if value is not None and image.normal(value, stat, k):
            continue
        low = min(stat.min, stat.mean - k * stat.std)
        high = max(stat.max, stat.mean + k * stat.std)
        measured = "not known" if value is None else f"{value:.4g}"
        reason = f"{label}: {field} is {measured}, expected {low:.4g} to {high:.4g} as in normal pictures"
        found.append(image.finding(type, reason, rule=rule, objects=[thing], severity=severity))
    return found


def inside(image, rule, type, label, place, mode, severity=1.0):
    """Every object of a label lies in a region."""
    box = image.region(place)
    found = []
    for thing in image.find(label):
        if image.in_region(thing, box, mode=mode):
            continue
        x, y = thing.center
        wanted = f"{place}, from ({box[0]:.4g}, {box[1]:.4g}) to ({box[2]:.4g}, {box[3]:.4g})"
        reason = f"{label}: at ({x:.4g}, {y:.4g}), expected in {wanted}"
        found.append(image.finding(type, reason, rule=rule, objects=[thing], severity=severity))
    return found


def ordered(image, rule, type, label, relation, other, severity=1.0):
    """Every object of a label is left of, right of, above or below every object of another (by their centres)."""
    found = []
    for thing in image.find(label):
        for mark in image.find(other):
            first, second = (thing, mark) if relation in ("left of", "above") else (mark, thing)
            level = relation in ("left of", "right of")
            holds = image.left_of(first, second) if level else image.above(first, second)
            if thing.id == mark.id or holds:
                continue
            axis = 0 if level else 1
            measured = f"{'xy'[axis]} is {thing.center[axis]:.4g}"
            reason = f"{label}: {measured}, expected {relation} {other} at {mark.center[axis]:.4g}"
            found.append(image.finding(type, reason, rule=rule, objects=[thing], severity=severity))
            break
    return found


def match(image, rule, type, label, given, value_of, other, wanted, answer_of, pairs, severity=1.0):
    """What one label is decides what another must be; pairs is None where both must be equal."""
    found = []
    for value, things in value_of(image, label):
        if value is None:
            reason = f"{label}: {given} is not known, expected one that goes with {wanted} of {other}"
            found.append(image.finding(type, reason, rule=rule, objects=things, severity=severity))
            continue
        if pairs is not None and value not in pairs:
            reason = f"{label}: {given} is {value}, expected one of {', '.join([str(key) for key in pairs])}"
            found.append(image.finding(type, reason, rule=rule, objects=things, severity=severity))
            continue
        right = value if pairs is None else pairs[value]
        for answer, others in answer_of(image, other):
            if answer != right:
                told = "not known" if answer is None else answer
                reason = f"{other}: {wanted} is {told}, expected {right} because {given} of {label} is {value}"
                boxes = [] if others else [usual_box(image, other)]
                both = [*things, *others]
                found.append(image.finding(type, reason, rule=rule, objects=both, boxes=boxes, severity=severity))
    return found


def counts(image, label):
    """The number of objects of a label, and those objects."""
    return [(image.count(label), image.find(label))]


def colors(image, label):
    """The name of the colour of each object of a label, and that object."""
    return [(image.color_name(thing), [thing]) for thing in image.find(label)]


def same(image, rule, type, labels, field, measure, within, severity=1.0):
    """A number is the same, up to a share, for all objects of these labels."""
    things = [thing for label in labels for thing in image.find(label)]
    values = [measure(thing) for thing in things]
    known = [value for value in values if value is not None]
    names = " and ".join(labels)
    if len(known) < len(things):
        unknown = [thing for thing in things if measure(thing) is None]
        reason = f"{names}: {field} is not known of {len(unknown)} of {len(things)}, expected the same number for all"
        return [image.finding(type, reason, rule=rule, objects=unknown, severity=severity)]
    if len(known) < 2 or max(known) - min(known) <= within * max([abs(value) for value in known]):
        return []
    reason = f"{names}: {field} is {min(known):.4g} to {max(known):.4g}, expected the same within {100 * within:g} %"
    return [image.finding(type, reason, rule=rule, objects=things, severity=severity)]
