"""This file owns building: each raw set of a plan is read, cleaned, filtered, turned into examples.

The order is the paper's: what is nearly an evaluation's text goes before examples are made of the
rest and sampled. What is drawn depends on the seed and the source's name, not on other sources.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.labelled import Labelled, by_example, by_label_text, read_labelled
from nvembed_deploy.train.data.overlap import evaluation_texts, near_duplicates
from nvembed_deploy.train.data.plan import DataPlan, Kind, SourcePlan
from nvembed_deploy.train.data.rows import (
    Faults,
    Placed,
    Row,
    data_files,
    labelled_negatives,
    pair_fault,
    read_rows,
    with_negatives,
)
from nvembed_deploy.train.data.scored import Scored, both_directions, read_scored
from nvembed_deploy.train.example import fault_of

_TASK_TYPES = {
    Kind.STS: "sts",
    Kind.LABEL_TEXTS: "classification",
    Kind.CLASSIFICATION: "classification",
    Kind.CLUSTERING: "clustering",
}


@dataclass
class SourceReport:
    """What became of a source."""

    name: str
    faults: Faults
    kept: int = 0
    over_limit: int = 0
    near_duplicates: dict[str, str] = field(default_factory=dict)
    """Training texts that were left out, and the evaluation text each nearly is."""


class Builder:
    """Makes the examples of a plan, source by source."""

    def __init__(self, plan: DataPlan, *, skip_bad: bool, out: Path | None = None) -> None:
        """Read the evaluations of the plan.

        Args:
            plan: what is built.
            skip_bad: count rows with a fault and leave them out, in place of stopping.
            out: where the examples go; never read where it lies in a source's folder.

        Raises:
            InputError: an evaluation cannot be read.
        """
        self._plan = plan
        self._skip_bad = skip_bad
        self._out = out
        self._evaluation = {
            text: None
            for section in plan.evaluation
            for text in evaluation_texts(section.path, section.where, without=out)
        }
        self.reports: list[SourceReport] = []

    def rows(self) -> Iterator[Row]:
        """Yield the examples of all sources; `reports` grows with each.

        Raises:
            InputError: a file cannot be read, a row has a fault and none may be skipped, or
                nothing is left of a source.
        """
        for source in self._plan.source:
            report = SourceReport(source.name, Faults(stop=not self._skip_bad))
            rows = list(self._checked(source, report))
            if not rows:
                raise InputError(
                    f"source {source.name} has no example left: {_reasons(report)}",
                    f"check {source.path} and its section of the plan",
                )
            kept = self._sample(source, len(rows))
            report.kept, report.over_limit = len(kept), len(rows) - len(kept)
            self.reports.append(report)
            yield from (rows[i] for i in kept)

    def _checked(self, source: SourcePlan, report: SourceReport) -> Iterator[Row]:
        """Yield what has the form of an example, each pair of texts once."""
        seen: set[tuple[str, str]] = set()
        for place, row in self._examples(source, report):
            whole = _completed(row, source)
            fault = fault_of(whole)
            if fault is None and (whole["query"], whole["positive"]) in seen:
                fault = "query and positive occurred before"
            if fault is not None:
                report.faults.add(place, fault)
                continue
            seen.add((whole["query"], whole["positive"]))
            yield whole

    def _examples(self, source: SourcePlan, report: SourceReport) -> Iterator[Placed]:
        faults, seed = report.faults, self._plan.seed
        rows = self._chosen(source, faults)
        if source.kind is Kind.PAIRS:
            yield from self._pairs(rows, report)
        elif source.kind is Kind.STS:
            pairs = list(read_scored(rows, source, faults))
            leaked = self._leaked((t for p in pairs for t in (p.first, p.second)), report)
            kept: list[Scored] = [p for p in pairs if not {p.first, p.second} & leaked.keys()]
            yield from both_directions(kept, source)
        else:
            texts: list[Labelled] = list(read_labelled(rows, source, faults))
            leaked = self._leaked((item.text for item in texts), report)
            texts = [item for item in texts if item.text not in leaked]
            if source.kind is Kind.LABEL_TEXTS:
                yield from by_label_text(texts, source, seed)
            else:
                yield from by_example(texts, source, seed, faults)

    def _chosen(self, source: SourcePlan, faults: Faults) -> Iterator[Placed]:
        """Yield the rows of a source's files that `where` takes."""
        for file in data_files(source.path, without=self._out):
            for place, row in read_rows(file, faults):
                if all(row.get(key) == value for key, value in source.where.items()):
                    yield place, row

    def _pairs(self, rows: Iterator[Placed], report: SourceReport) -> Iterator[Placed]:
        """Yield pairs of which neither side, and negatives of which none, are an evaluation's."""
        placed = []
        for place, row in rows:
            fault = pair_fault(row)
            if fault is None:
                placed.append((place, row))
            else:
                report.faults.add(place, fault)
        leaked = self._leaked((text for _, row in placed for text in _texts(row)), report)
        for place, row in placed:
            if row["query"] not in leaked and row["positive"] not in leaked:
                negatives = dict(labelled_negatives(row))
                kept = {text: negatives[text] for text in negatives if text not in leaked}
                yield place, with_negatives(row, kept.items())

    def _leaked(self, texts: Iterable[str], report: SourceReport) -> dict[str, str]:
        if self._evaluation:
            report.near_duplicates = near_duplicates(
                list(texts), self._evaluation, self._plan.near_duplicate
            )
        return report.near_duplicates

    def _sample(self, source: SourcePlan, count: int) -> list[int]:
        if source.limit is None or count <= source.limit:
            return list(range(count))
        drawn = random.Random(f"{self._plan.seed} {source.name} limit")
        return sorted(drawn.sample(range(count), source.limit))


def _reasons(report: SourceReport) -> str:
    reasons = [line.strip() for line in report.faults.lines()[:3]]
    if report.near_duplicates:
        reasons.append(f"{len(report.near_duplicates):,} texts are nearly in an evaluation")
    return "; ".join(reasons) or "no row fits"


def _texts(row: Row) -> list[str]:
    return [row["query"], row["positive"], *(row.get("negatives") or ())]


def _completed(row: Row, source: SourcePlan) -> Row:
    """Return a row with all keys of the format, its own extra ones after them."""
    own = source.instruction if source.instruction is not None else row.get("instruction")
    whole = {
        "task_type": _TASK_TYPES.get(source.kind) or row.get("task_type") or "retrieval",
        "instruction": own or "",
        "query": row["query"],
        "positive": row["positive"],
        "negatives": [],
        "source": source.name,
        **{key: row[key] for key in ("label",) if key in row},
    }
    return with_negatives(whole, labelled_negatives(row)[: source.negatives])
