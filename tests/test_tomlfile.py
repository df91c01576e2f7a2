"""Tests of nvembed_deploy/tomlfile.py: a file that cannot be read is named, and says its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.tomlfile import read_toml, read_value


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('a = 1\n[b]\nc = "ü"\n', encoding="utf-8")
    assert read_toml(path, "recipe", see="train/") == {"a": 1, "b": {"c": "ü"}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "plan {path} does not exist"),
        (b"[a", "plan {path} is not TOML"),
        (b"a = '\xff'", "plan {path} is not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_toml(path, "plan", see="docs/data.md")
    assert caught.value.problem.startswith(problem.format(path=path))


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ('["a"]', ["a"]), ("a/b.c", "a/b.c"), ("", "")],
)
def test_a_value_is_tomls_or_a_bare_word(text: str, value: object) -> None:
    assert read_value(text) == value
