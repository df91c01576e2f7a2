"""Tests that the examples run as their first lines say, and print what a reader expects."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed_deploy import load_encoder

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


def test_serve_answers_as_openai_does(tiny_artifact: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "serve.py", tiny_artifact, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            rows = [post(url, {"input": texts})["data"] for texts in ("a", ["a", "b"])]
            query = post(url, {"input": "a", "instruction": "find"})["data"][0]["embedding"]
            short = post(url, {"input": "a", "dimensions": 8})["data"][0]["embedding"]
            packed = post(url, {"input": "a", "encoding_format": "base64"})["data"][0]["embedding"]
            for wrong, why in (
                ({"texts": []}, "no `input`"),
                (["a"], "no `input`"),
                ({"input": [7]}, r"inputs[0] is a int"),
                ({"input": "a", "instruction": 7}, "instruction is a int"),
                ({"input": "a", "dimensions": 65}, "truncate_dim is 65"),
            ):
                assert why in post(url, wrong)["error"]["message"]
            for size in ("-1", "99999999999"):
                refused = post(url, {"input": "a"}, {"Content-Length": size})
                assert "Content-Length" in refused["error"]["message"]
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
        finally:
            server.kill()
    assert [row["index"] for row in rows[1]] == [0, 1]
    assert rows[0][0] == rows[1][0]
    with load_encoder(tiny_artifact) as encoder:
        expected = encoder.encode("a", instruction="find")
        assert np.allclose(short, encoder.encode("a", truncate_dim=8), atol=1e-6)
        row = np.frombuffer(base64.b64decode(packed), "<f4")
        assert np.allclose(row, encoder.encode("a"), atol=1e-6)
    assert np.allclose(query, expected, atol=1e-6)
    assert not np.allclose(query, rows[0][0]["embedding"], atol=1e-3)


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is missing: pip install 'ray[data]'")
def test_bulk_embeds_a_corpus_on_ray(tiny_artifact: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    texts = [f"text {i} {'water ' * (i % 9)}" for i in range(50)]
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    run("bulk.py", tiny_artifact, corpus, out)
    rows = pyarrow.parquet.read_table(out).sort_by("id").to_pydict()
    assert rows["text"] == texts
    with load_encoder(tiny_artifact) as encoder:
        np.testing.assert_allclose(rows["embedding"], encoder.encode(texts), atol=1e-6)


def post(url: str, body: object, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        assert error.code == 400
        return json.load(error)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_tested_and_listed(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 50
    assert f'"{path.name}"' in Path(__file__).read_text(encoding="utf-8")
    assert f"({path.name})" in (ROOT / "examples/README.md").read_text(encoding="utf-8")
