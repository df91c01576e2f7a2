"""Tests that the examples run as their first lines say, and print what a reader expects."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *args: str | Path) -> str:
    command = [sys.executable, ROOT / "examples" / name, *args]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_encode_prints_shapes_and_similarities(tiny_artifact: Path) -> None:
    shapes, similarities = run("encode.py", tiny_artifact).splitlines()
    assert shapes == "(64,) (2, 64) float32"
    scores = [float(number) for number in re.findall(r"-?\d\.\d*", similarities)]
    assert len(scores) == 2
    assert all(-1 <= score <= 1 for score in scores)


def test_search_ranks_lines_and_reads_the_kept_embeddings(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    lines = [f"line {i}: {'water ' * i}boils" for i in range(7)]
    file = tmp_path / "lines.txt"
    file.write_text("\n\n".join(lines), encoding="utf-8")
    first = run("search.py", tiny_artifact, file, "does water boil?")
    (kept,) = tmp_path.glob("lines.txt.*.npy")
    written = kept.stat().st_mtime_ns
    rows = [row.split("  ", 1) for row in first.splitlines()]
    assert len({line for _, line in rows} & set(lines)) == 5
    scores = [float(score) for score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    assert run("search.py", tiny_artifact, file, "does water boil?") == first
    assert kept.stat().st_mtime_ns == written
    file.write_text("one line\nanother", encoding="utf-8")
    assert len(run("search.py", tiny_artifact, file, "does water boil?").splitlines()) == 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_tested_and_listed(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    assert f'run("{path.name}"' in Path(__file__).read_text(encoding="utf-8")
    assert f"({path.name})" in (ROOT / "examples/README.md").read_text(encoding="utf-8")
