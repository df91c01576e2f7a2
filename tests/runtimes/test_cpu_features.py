"""Tests of nvembed_deploy/runtimes/cpu_features.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.runtimes.cpu_features import lacks_byte_dots


@pytest.mark.parametrize(
    ("machine", "flags", "lacks"),
    [
        ("x86_64", "sse4_2 avx2 avx512f", True),
        ("x86_64", "avx2 avx_vnni", False),
        ("AMD64", "avx512f avx512_vnni", False),
        ("x86_64", "avx2 amx_tile amx_int8", False),
        ("aarch64", "", False),
    ],
)
def test_only_x86_without_vnni_saturates(
    tmp_path: Path, machine: str, flags: str, lacks: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags\t\t: {flags}\nbogomips : 1\n", encoding="utf-8")
    assert lacks_byte_dots(path, machine) is lacks


def test_an_unknown_processor_is_not_warned_of(tmp_path: Path) -> None:
    assert not lacks_byte_dots(tmp_path / "none", "x86_64")
