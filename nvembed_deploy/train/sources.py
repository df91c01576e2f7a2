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
from nvembed_deploy.train.room import Room

_FORMATS = ".jsonl, .jsonl.gz, .parquet, or a folder of them or of `datasets`"
_SHOWN_FAULTS = 3
_REPORT = "report.json"
_VERSION = 2
"""Of what a table and its report hold: those of another version are made again."""


@dataclass(frozen=True)
class SourceReport:
    """What reading a source found: kept lines, left-out lines by reason, tasks."""

    path: str
    kept: int
    faults: dict[str, int]
    task_types: dict[str, int]
    num_alone: int
    """Examples without a negative, save perhaps the query itself."""
    digest: str
    """A hash of the examples in their order: equal wherever and however they are stored."""


class Source:
    """Checked examples on disk, by number."""

    def __init__(self, folder: Path) -> None:
        """Open what `open_source` wrote."""
        import datasets

        self.folder = folder
        self.report = SourceReport(**json.loads((folder / _REPORT).read_text(encoding="utf-8")))
        self._table = datasets.load_from_disk(str(folder / "table"))

    def __len__(self) -> int:
        """Return how many examples there are."""
        return self.report.kept

    def __getitem__(self, index: int) -> Example:
        """Return one example."""
        return to_example(self._table[index])


def is_table(folder: Path) -> bool:
    """Return whether a folder is what `open_source` writes, or was writing when it was killed."""
    return (folder / _REPORT).is_file() or (folder.suffix == ".partial" and folder.is_dir())


def open_source(
    section: SourceSection, cache: Path, *, skip_faults: bool, room: Room | None = None
) -> Source:
    """Read a source into a table under `cache`, or take the one that is there.

    Args:
        section: where it is, and what is taken of it.
        cache: holds a folder for each table.
        skip_faults: leave out lines that are no examples.
        room: an instruction without room is a fault of its line; not looked at if None.

    Raises:
        InputError: the source does not exist or is of no known format; a line is no example and
            `skip_faults` is false; or nothing is left.
    """
    import datasets

    datasets.disable_progress_bars()
    folder = cache / _fingerprint(section, skip_faults, room)
    if not is_table(folder):
        _build(section, folder, skip_faults=skip_faults, room=room)
    return Source(folder)


def _build(section: SourceSection, folder: Path, *, skip_faults: bool, room: Room | None) -> None:
    import datasets

    faults: Counter[str] = Counter()
    found = _Found()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)

    def examples() -> Iterator[dict[str, Any]]:
        for place, row in _rows(section.path):
            fault = _fault_of(row, room)
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
            found.add(example)
            yield {**vars(example), "negatives": list(example.negatives)}

    table = _table(examples, partial / "build", datasets)
    if table is None:
        raise InputError(
            f"{section.path} has no example left ({dict(faults.most_common(_SHOWN_FAULTS))})",
            "correct the file, or the task_types asked for",
        )
    table.save_to_disk(str(partial / "table"))
    del table
    shutil.rmtree(partial / "build")
    report = found.report(section.path, dict(faults))
    (partial / _REPORT).write_text(json.dumps(asdict(report)), encoding="utf-8")
    partial.replace(folder)


class _Found:
    """Counts the examples of a source as they are read."""

    def __init__(self) -> None:
        self._tasks: Counter[str] = Counter()
        self._num_alone = 0
        self._hash = hashlib.sha256()

    def add(self, example: Example) -> None:
        self._tasks[example.task_type] += 1
        self._num_alone += not set(example.negatives) - {example.query}
        texts = json.dumps(list(vars(example).values()), ensure_ascii=False)
        self._hash.update(texts.encode())

    def report(self, path: Path, faults: dict[str, int]) -> SourceReport:
        return SourceReport(
            path=str(path),
            kept=self._tasks.total(),
            faults=faults,
            task_types=dict(self._tasks),
            num_alone=self._num_alone,
            digest=self._hash.hexdigest(),
        )


def _fault_of(row: object, room: Room | None) -> str | None:
    """Say why a row is no example: itself if it is the reason, in words; None if it is one."""
    fault = row if isinstance(row, str) else fault_of(row)
    if fault is None and room is not None and isinstance(row, dict):
        fault = room.fault_of(row.get("instruction") or "")
    return fault


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
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p))
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
                yield f"{path}, row {number}", _without_nulls(row)
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
        yield f"{path}, row {number}", _without_nulls(row)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a row of a table has not: its column is there for other rows."""
    return {key: value for key, value in row.items() if value is not None}


def _fingerprint(section: SourceSection, skip_faults: bool, room: Room | None) -> str:
    """Return a name that changes with the source's files and with what is taken of them."""
    path = section.path
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.exists()]
    key = room.key if room else None
    text = json.dumps([_VERSION, stamps, section.task_types, skip_faults, key])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
