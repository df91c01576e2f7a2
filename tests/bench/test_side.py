"""What is measured, as words on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvembed_deploy.bench import side
from nvembed_deploy.bench.side import Side, competitor, own_sides, with_distinct_names
from nvembed_deploy.errors import InputError, MissingPackageError


def test_a_folder_is_called_by_its_name_or_by_the_one_given(tmp_path: Path) -> None:
    sides = own_sides([str(tmp_path), f"int8={tmp_path}"], [])
    assert [side.name for side in sides] == [tmp_path.name, "int8"]
    assert {side.path for side in sides} == {str(tmp_path)}


def test_several_runtimes_make_several_sides(tmp_path: Path) -> None:
    sides = own_sides([f"a={tmp_path}"], ["onnx", "torch"])
    assert [(s.name, s.runtime) for s in sides] == [("a/onnx", "onnx"), ("a/torch", "torch")]


def test_sides_of_one_name_are_numbered() -> None:
    named = with_distinct_names([Side("a"), Side("b"), Side("a"), Side("a")])
    assert [side.name for side in named] == ["a", "b", "a #2", "a #3"]


def test_a_number_does_not_take_a_name_that_is_given() -> None:
    named = with_distinct_names([Side("a #2"), Side("a"), Side("a"), Side("a #2")])
    assert [side.name for side in named] == ["a #2", "a", "a #3", "a #2 #2"]


def test_a_server_needs_an_address() -> None:
    assert competitor("tei=http://localhost:8080/").url == "http://localhost:8080"
    with pytest.raises(InputError, match="has no address"):
        competitor("tei")


def test_an_unknown_competitor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="expected one of sentence-transformers, "):
        competitor("sentence_transformers")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        own_sides([str(tmp_path / "nowhere")], [])


def test_packages_that_competitors_lack_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [Side("a"), *map(competitor, ("onnx-traced", "sentence-transformers", "transformers"))]
    side.check_packages(sides)
    gone = {"torch", "sentence_transformers", "onnxscript"}
    monkeypatch.setattr(side, "find_spec", lambda name: None if name in gone else name)
    side.check_packages(sides[:1])
    with pytest.raises(MissingPackageError) as caught:
        side.check_packages(sides)
    assert caught.value.fix == "pip install torch onnxscript sentence-transformers"


def test_a_side_survives_json(tmp_path: Path) -> None:
    given = Side("a", path=str(tmp_path), threads=2)
    assert Side.from_dict(given.to_dict()) == given
