"""The model repository of runtimes/triton in the real Triton server, whose wheel is fetched once.

NVIDIA's pytriton wheel holds the server and its Python backend. That one (Triton 2.51) knows numpy
1 alone, so the packages of a serving host lie beside it, with numpy 1.26.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.runtimes.encoder import Encoder

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "triton"
WHEEL = "nvidia-pytriton==0.7.0"
PACKAGES = ("numpy==1.26.4", "ml_dtypes", "onnxruntime", "rich", "tokenizers")
WHEELS = ("--only-binary", ":all:")
"""Python 3.13 has none of that numpy, and would compile it for minutes."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
WORDS = ["which planet has rings?", "", "Saturn has rings of ice.", "más agua 水"]


class Server:
    """A server that runs, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v2"

    def embed(self, texts: Sequence[str], instructions: Sequence[str] = ()) -> np.ndarray:
        given = {"TEXT": texts, "INSTRUCTION": instructions}
        inputs = [
            {"name": name, "shape": [len(rows), 1], "datatype": "BYTES", "data": list(rows)}
            for name, rows in given.items()
            if rows
        ]
        (output,) = self.post(json.dumps({"inputs": inputs}).encode())["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    def post(self, body: bytes, **headers: str) -> Any:
        request = urllib.request.Request(f"{self.url}/models/nv-embed/infer", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def statistics(self) -> Any:
        with urllib.request.urlopen(f"{self.url}/models/nv-embed/stats", timeout=60) as answer:
            return json.load(answer)["model_stats"][0]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=1):
                return True
        except OSError:
            return False


def fetched() -> Path:
    """Return the folder with `server/` and the `site/` of a serving host, fetched once."""
    done = BUILD / f"fetched-{PYTHON}"
    if done.is_file():
        return BUILD
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    shutil.rmtree(BUILD, ignore_errors=True)
    try:
        subprocess.run([*pip, "install", *WHEELS, "-t", BUILD / "site", *PACKAGES], check=True)
        subprocess.run([*pip, "download", *WHEELS, "--no-deps", "-d", BUILD, WHEEL], check=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Triton's wheel, or those beside it, cannot be fetched: {error}")
    zipfile.ZipFile(next(BUILD.glob("*.whl"))).extractall(BUILD / "server")
    server = BUILD / "server" / "pytriton" / "tritonserver"
    stub = "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / PYTHON / stub, server / "backends/python" / stub)
    for program in (server / "bin/tritonserver", server / "backends/python" / stub):
        program.chmod(0o755)
    done.touch()
    return BUILD


def repository(folder: Path, artifact: Path) -> Path:
    """Return a copy of runtimes/triton with an artifact, that finds its packages."""
    shutil.copytree(ROOT / "runtimes" / "triton", folder)
    version = folder / "nv-embed" / "1"
    (version / "artifact").symlink_to(artifact)
    code = (version / "model.py").read_text(encoding="utf-8")
    path = f"import sys\n\nsys.path[:0] = [{str(ROOT)!r}, {str(BUILD / 'site')!r}]\n"
    (version / "model.py").write_text(path + code, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = fetched() / "server" / "pytriton" / "tritonserver"
    folder = tmp_path_factory.mktemp("triton")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}
    stub = program / "backends" / "python" / "triton_python_backend_stub"
    tried = subprocess.run([stub], env=environment, capture_output=True, text=True, check=False)
    if "shared libraries" in tried.stderr or "GLIBC" in tried.stderr:
        pytest.skip(f"Triton's Python backend cannot be started here: {tried.stderr.strip()}")
    command = [
        program / "bin" / "tritonserver",
        *("--model-repository", repository(folder / "models", tiny_artifact)),
        *("--backend-directory", program / "backends"),
        *("--http-address", "127.0.0.1", "--http-port", str(port)),
        *("--allow-grpc", "false", "--allow-metrics", "false"),
    ]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    server = Server(port)
    try:
        end = time.monotonic() + 120
        while not server.is_ready():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def encoder(tiny_artifact: Path) -> Iterator[Encoder]:
    with load_encoder(tiny_artifact, device="cpu") as encoder:
        yield encoder


def test_it_answers_as_encode_does(server: Server, encoder: Encoder) -> None:
    np.testing.assert_allclose(server.embed(WORDS), encoder.encode(WORDS), atol=1e-6)
    tasks = ["find a planet", "", "find a planet", "más"]
    expected = [encoder.encode(t, instruction=i or None) for t, i in zip(WORDS, tasks, strict=True)]
    np.testing.assert_allclose(server.embed(WORDS, tasks), expected, atol=1e-6)


def test_requests_that_come_together_are_computed_together(
    server: Server, encoder: Encoder
) -> None:
    texts = [f"text {i} {'water ' * (i % 7)}" for i in range(96)]
    before = server.statistics()
    with ThreadPoolExecutor(32) as pool:
        rows = list(pool.map(lambda text: server.embed([text])[0], texts))
    after = server.statistics()
    np.testing.assert_allclose(rows, encoder.encode(texts), atol=1e-6)
    texts_of, runs_of = "inference_count", "execution_count"
    assert after[texts_of] - before[texts_of] == 96
    assert after[runs_of] - before[runs_of] < 96 / 2


def test_a_text_that_is_no_utf8_is_refused_in_words(server: Server) -> None:
    text = b"\xff\xfe"
    data = len(text).to_bytes(4, "little") + text
    shape = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES"}
    head = json.dumps(
        {"inputs": [shape | {"parameters": {"binary_data_size": len(data)}}]}
    ).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post(head + data, **{"Inference-Header-Content-Length": str(len(head))})
    assert "no UTF-8" in refused.value.read().decode()
    assert refused.value.code == 400
    assert server.is_ready()


def test_a_task_without_a_text_is_refused_in_words(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.embed([], ["find a planet"])
    assert "0 TEXT came with 1 INSTRUCTION" in refused.value.read().decode()
