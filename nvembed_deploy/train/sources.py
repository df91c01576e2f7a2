"""This file owns reading training data: files to memory-mapped tables of checked examples.

A source is read once, line by line, into an Arrow table on disk (Hugging Face `datasets`), so
that examples are drawn at random from files larger than memory and every fault is known before
the first step. The table is kept and reused while its source does not change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.example import Example, fault_of, to_example
from nvembed_deploy.train.jsonlines import read_lines
from nvembed_deploy.train.recipe import SourceSection

_FORMATS = ".jsonl, .jsonl.gz, .parquet, or a folder of them or of `datasets`"
_SHOWN_FAULTS = 3


@dataclass(frozen=True)
class SourceReport:
    """What reading a source found: kept lines, left-out lines by reason, tasks."""

    path: str
    kept: int
    faults: dict[str, int]
    task_types: dict[str, int]


class Source:
    """Checked examples on disk, by number."""

    def __init__(self, table: Any, report: SourceReport) -> None:  # noqa: ANN401 - untyped package
        """Take a `datasets.Dataset`; use `open_source`."""
        self._table = table
        self.report = report

    def __len__(self) -> int:
        """Return how many examples there are."""
        return self.report.kept

    def __getitem__(self, index: int) -> Example:
        """Return one example."""
        return to_example(self._table[index])


def open_source(section: SourceSection, cache: Path, *, skip_faults: bool) -> Source:
    """Read a source into a table under `cache`, or take the one that is there.

    Raises:
        InputError: the source does not exist or is of no known format; a line is no example and
            `skip_faults` is false; or nothing is left.
    """
    import datasets

    datasets.disable_progress_bars()
    folder = cache / _fingerprint(section, skip_faults)
    if not (folder / "report.json").exists():
        _build(section, folder, skip_faults=skip_faults)
    report = SourceReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
    return Source(datasets.load_from_disk(str(folder / "table")), report)


def _build(section: SourceSection, folder: Path, *, skip_faults: bool) -> None:
    import datasets

    faults: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)

    def examples() -> Iterator[dict[str, Any]]:
        for place, row in _rows(section.path):
            fault = row if isinstance(row, str) else fault_of(row)
            if fault is not None:
                if not skip_faults:
                    raise InputError(
                        f"{place}: {fault}", 'correct it, or set text.on_bad = "skip" to leave out'
                    )
                faults[fault] += 1
                continue
            example = to_example(row)
            if section.task_types and example.task_type not in section.task_types:
                continue
            tasks[example.task_type] += 1
            yield {**asdict(example), "negatives": list(example.negatives)}

    table = _table(examples, partial / "build", datasets)
    if table is None:
        raise InputError(
            f"{section.path} has no example left ({dict(faults.most_common(_SHOWN_FAULTS))})",
            "correct the file, or the task_types asked for",
        )
    table.save_to_disk(str(partial / "table"))
    del table
    shutil.rmtree(partial / "build")
    report = SourceReport(str(section.path), sum(tasks.values()), dict(faults), dict(tasks))
    (partial / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")
    partial.replace(folder)


def _table(examples: Any, cache: Path, datasets: Any) -> Any:  # noqa: ANN401 - untyped package
    """Write examples to an Arrow table; None if there are none. Our own errors pass unchanged."""
    text = datasets.Value("large_string")
    features = datasets.Features(
        {
            **dict.fromkeys(("task_type", "instruction", "query", "positive"), text),
            "negatives": datasets.List(text),
        }
    )
    rows = examples()
    first = next(rows, None)
    if first is None:
        return None
    failure: list[InputError] = []

    def generate() -> Iterator[dict[str, Any]]:
        yield first
        try:
            yield from rows
        except InputError as error:
            failure.append(error)
            raise

    try:
        return datasets.Dataset.from_generator(
            generate, features=features, cache_dir=str(cache), fingerprint=cache.parent.name[:32]
        )
    except Exception:
        if failure:
            raise failure[0] from None
        raise


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row); a row that cannot be parsed is a text that says why."""
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            yield from _dataset_rows(path)
            return
        files = sorted(p for p in path.rglob("*") if _is_data(p))
        if not files:
            raise InputError(f"folder {path} has no data file", f"expected {_FORMATS}")
        for file in files:
            yield from _rows(file)
    elif not path.exists():
        raise InputError(f"data {path} does not exist", "correct the path in the recipe")
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif _is_data(path):
        yield from read_lines(path)
    else:
        raise InputError(f"data {path} has an unknown format", f"expected {_FORMATS}")


def _is_data(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        number = 0
        for batch in ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except ArrowInvalid as error:
        raise InputError(f"{path} is no Parquet file: {error}", "copy it again") from None


def _dataset_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise InputError(
                f"{path} has the splits {sorted(loaded)}, expected train", "name one split's folder"
            )
        loaded = loaded["train"]
    for number, row in enumerate(loaded, 1):
        yield f"{path}, row {number}", row


def _fingerprint(section: SourceSection, skip_faults: bool) -> str:
    """Return a name that changes with the source's files and with what is taken of them."""
    path = section.path
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.exists()]
    text = json.dumps([stamps, section.task_types, skip_faults])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
