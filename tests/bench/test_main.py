"""The command, run as a user does on tiny models."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nvembed_deploy.bench.__main__ import _device_of_theirs, main
from nvembed_deploy.bench.mixes import SHAPES
from tests import factories

QUICK = ["--seconds", "0.01", "--starts", "1", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """A small file of queries and passages."""
    path = tmp_path / "small.jsonl"
    lines = [
        {"text": f"the cat sat on {i} mats " * (i + 1), "instruction": "find" * (i % 2)}
        for i in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_sides_are_measured_in_turns_and_compared(
    tiny_artifact: Path,
    tiny_assembled: Path,
    mix: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bench.json"
    words = [f"onnx={tiny_artifact}", "--checkpoint", str(tiny_assembled), "--mix", str(mix)]
    page = tmp_path / "bench.html"
    words += ["--against", "sentence-transformers", "--json", str(out), "--html", str(page), *QUICK]
    assert main(words) == 0
    shown, log = capsys.readouterr()
    assert re.search(r"^ +\d+ s  small: round 1 of \d+, 8 texts$", log, re.MULTILINE)
    found = json.loads(out.read_text())
    (numbers,) = found["mixes"]
    assert list(numbers["sides"]) == ["onnx", "sentence-transformers"]
    assert (numbers["name"], numbers["texts"]) == ("small", 8)
    for name, side in numbers["sides"].items():
        assert name in shown
        assert side["slowest"] <= side["tokens_per_second"] <= side["fastest"]
        assert side["latency_ms"]["p50"] <= side["latency_ms"]["p99"]
        assert side["cosine_min"] > 1 - 1e-6
        assert 0 < side["tokenize_share"] < 1
        assert side["utilisation"] > 0
        start = found["sides"][name]
        assert start["peak_bytes"] > 1 << 20
        assert start["cold_start_seconds"] > start["load_seconds"]
    assert numbers["sides"]["onnx"]["speedup"] == 1
    assert page.read_text().count("sentence-transformers") > 3
    assert {"date", "machine", "versions", "settings"} <= set(found)


def test_what_was_measured_is_kept_where_the_tables_cannot_be_printed(
    tiny_artifact: Path, mix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("nvembed_deploy.bench.table.print_report", broken)
    out = tmp_path / "bench.json"
    main([f"model[red]={tiny_artifact}", "--mix", str(mix), "--json", str(out), *QUICK])
    assert json.loads(out.read_text())["sides"]


def test_a_competitor_without_weights_says_what_to_give(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_artifact), "--against", "transformers", *QUICK]) == 2
    assert "fix: name the one that the artifact was exported from" in capsys.readouterr().err


def test_a_missing_folder_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--mix", "querys"], "mix is 'querys'"),
        (["--json", "gone/x.json"], "--json gone/x.json lies in a folder that does not exist"),
        (["--html", "gone/x.html"], "--html gone/x.html lies in a folder that does not exist"),
        (["--json", "."], "--json . is a folder"),
    ],
)
def test_a_wrong_option_is_refused_before_a_side_is_started(  # noqa: PLR0913, PLR0917 - fixtures
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_artifact.resolve()), *words, *QUICK]) == 2
    log = capsys.readouterr().err
    assert problem in log
    assert "start " not in log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("measured", "code"), [(0.001, 0), (1000.0, 1)])
def test_the_gate_decides_the_exit_code(  # noqa: PLR0913, PLR0917 - fixtures
    measured: float,
    code: int,
    tiny_artifact: Path,
    mix: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    floors = tmp_path / "floors.toml"
    floors.write_text(
        f'[[ratio]]\nours = "a"\nagainst = "b"\nmix = "small"\nmeasured = {measured}\n'
        "tolerance = 0.2\n"
    )
    words = [f"a={tiny_artifact}", f"b={tiny_artifact}", "--mix", str(mix), "--texts", "3"]
    assert main([*words, "--ratios", str(floors), *QUICK]) == code
    shown = capsys.readouterr()
    assert "a than b" in shown.out
    assert ("below their floor" in shown.err) is bool(code)


def test_a_model_too_short_for_a_mix_is_told_at_its_first_start(
    tiny_artifact: Path, tiny_assembled: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    long = replace(SHAPES["long"], low=factories.TINY.text.max_tokens)
    monkeypatch.setitem(SHAPES, "long", long)
    words = [f"a={tiny_artifact}", f"b={tiny_assembled}", "--mix", "long", *QUICK]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "start a" in err
    assert "start b" not in err
    assert "fix: leave long out of --mix" in err


class Falling(BaseHTTPRequestHandler):
    """A server with TEI's route that answers one request and no more."""

    answered = 0

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        self.send_response(500 if Falling.answered else 200)
        self.end_headers()
        Falling.answered += 1
        self.wfile.write(
            json.dumps([[1.0] * factories.TINY.backbone.hidden_size] * len(texts)).encode()
        )

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def test_what_the_others_did_is_kept_where_a_side_fails(
    tiny_artifact: Path, mix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "bench.json", tmp_path / "bench.html"
    with HTTPServer(("127.0.0.1", 0), Falling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"tei=http://127.0.0.1:{server.server_port}"
        words = [f"ours={tiny_artifact}", "--mix", str(mix), "--against", url]
        code = main([*words, "--json", str(out), "--html", str(page), *QUICK])
        server.shutdown()
    assert code == 3
    shown, log = capsys.readouterr()
    assert "HTTP Error 500" in shown
    assert "error: 1 of 2 sides failed: tei: " in log
    found = json.loads(out.read_text())
    assert list(found["mixes"][0]["sides"]) == ["ours"]
    assert found["mixes"][0]["sides"]["ours"]["tokens_per_second"] > 0
    assert "HTTP Error 500" in found["faults"]["tei"]
    assert "Left out when it failed: tei: " in page.read_text()


def test_sides_of_two_sizes_are_refused_before_a_round(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = factories.write_released(tmp_path / "other", factories.FUSABLE)
    assert main([f"a={tiny_artifact}", f"b={other}", *QUICK]) == 2
    err = capsys.readouterr().err
    assert "error: b gives rows of 128 numbers, a of 64" in err
    assert "warm up" not in err


@pytest.mark.parametrize(
    ("device", "theirs"),
    [(None, None), ("cpu", "cpu"), ("tensorrt", "cuda"), ("tensorrt-rtx:1", "cuda:1")],
)
def test_competitors_run_on_the_gpu_of_tensorrts_providers(
    device: str | None, theirs: str | None
) -> None:
    assert _device_of_theirs(device) == theirs
