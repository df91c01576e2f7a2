"""The facts beside a result."""

from __future__ import annotations

import json
import os

import numpy as np

from nvembed_deploy.bench.machine import gpu_bytes, machine, versions


def test_the_machine_is_described_in_plain_data() -> None:
    found = json.loads(json.dumps(machine()))
    assert found["processor"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["memory_bytes"] > 1 << 28


def test_only_installed_packages_have_versions() -> None:
    assert versions()["numpy"] == np.__version__
    assert all(versions().values())


def test_a_process_without_gpu_memory_has_no_row() -> None:
    assert gpu_bytes([os.getpid()]) == {}
