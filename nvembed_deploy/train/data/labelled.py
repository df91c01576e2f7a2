"""This file owns examples made of labelled texts: by the label's text, or by another text of it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nvembed_deploy.train.data.plan import SourcePlan
from nvembed_deploy.train.data.rows import Faults, Placed, label_of, text_fault
from nvembed_deploy.train.example import is_unicode

Groups = dict[str, list[str]]
"""Texts by label."""


@dataclass(frozen=True)
class Labelled:
    """A text of a known class, and the place it was read at."""

    place: str
    text: str
    label: str


def read_labelled(rows: Iterable[Placed], plan: SourcePlan, faults: Faults) -> Iterator[Labelled]:
    """Yield each text once with its label (numbers and booleans as texts).

    Empty texts, missing labels and repeated texts are faults; so are all rows of a text that has
    two labels, labels that `label_texts` does not know, and known ones that no row has.
    """
    first: dict[str, Labelled] = {}
    doubtful: dict[str, None] = {}
    for place, row in rows:
        text, label = row.get(plan.column("text")), row.get(plan.column("label"))
        name = label_of(label) if isinstance(label, str | int | float) else None
        fault = _fault(text, label, name, plan)
        if fault is not None:
            faults.add(place, fault)
            continue
        item = Labelled(place, str(text), str(name))
        before = first.setdefault(item.text, item)
        if before.label != item.label:
            faults.add(place, "the text occurred before, under another label")
            doubtful[item.text] = None
        elif before is not item:
            faults.add(place, "the text occurred before")
    for text in doubtful:
        faults.add(first.pop(text).place, "the text occurs again, under another label")
    yield from first.values()
    for label in sorted(set(plan.label_texts) - {item.label for item in first.values()}):
        faults.add(str(plan.path), f"label {label!r} of label_texts is never seen")


def _fault(text: object, label: object, name: str | None, plan: SourcePlan) -> str | None:
    if (fault := text_fault(plan.column("text"), text)) is not None:
        return fault
    if name is None or not name.strip() or not is_unicode(name):
        return f"{plan.column('label')} is {label!r:.60}, expected a label"
    if plan.label_texts and name not in plan.label_texts:
        return f"label {name!r:.60} is not among label_texts {sorted(plan.label_texts)[:10]}"
    return None


def by_label_text(texts: Sequence[Labelled], plan: SourcePlan, seed: int) -> Iterator[Placed]:
    """Yield each text with its label's text as positive and other labels' as negatives."""
    drawn = random.Random(f"{seed} {plan.name}")
    names = sorted(plan.label_texts or {item.label for item in texts})
    for item in texts:
        others = [name for name in names if name != item.label]
        negatives = drawn.sample(others, min(plan.negatives, len(others)))
        yield (
            item.place,
            {
                "query": item.text,
                "positive": plan.label_texts.get(item.label, item.label),
                "negatives": [plan.label_texts.get(name, name) for name in negatives],
                "label": item.label,
                "negative_labels": negatives,
            },
        )


def by_example(
    texts: Sequence[Labelled], plan: SourcePlan, seed: int, faults: Faults
) -> Iterator[Placed]:
    """Yield each text with another of its class as positive, texts of other classes as negatives.

    Other classes are drawn alike, however large they are, and none twice before all were drawn.
    A class with one text is a fault.
    """
    drawn = random.Random(f"{seed} {plan.name}")
    groups: Groups = defaultdict(list)
    for item in texts:
        groups[item.label].append(item.text)
    for item in texts:
        group = groups[item.label]
        if len(group) == 1:
            faults.add(item.place, f"label {item.label!r:.60} has this one text, so no positive")
            continue
        positive = _another(group, item.text, drawn)
        negatives = _outsiders(groups, item.label, plan.negatives, drawn)
        yield (
            item.place,
            {
                "query": item.text,
                "positive": positive,
                "negatives": list(negatives),
                "label": item.label,
                "negative_labels": list(negatives.values()),
            },
        )


def _another(group: list[str], text: str, drawn: random.Random) -> str:
    """Draw a text that is not `text`; the texts of a group are distinct."""
    while True:
        other = drawn.choice(group)
        if other != text:
            return other


def _outsiders(groups: Groups, label: str, count: int, drawn: random.Random) -> dict[str, str]:
    """Draw texts of other labels, each once; return each with its label."""
    others = [name for name in groups if name != label]
    left: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    while others and len(found) < count:
        for name in drawn.sample(others, min(count - len(found), len(others))):
            if name not in left:
                left[name] = drawn.sample(groups[name], min(count, len(groups[name])))
            found[left[name].pop()] = name
        others = [name for name in others if left.get(name) != []]
    return found
