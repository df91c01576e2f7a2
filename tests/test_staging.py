"""Tests of nvembed_deploy/staging.py: only ours is overwritten, and nothing that is being read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nvembed_deploy.artifact import LAYOUT, open_artifact, staged_artifact
from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.staging import names_in, refuse_inside
from tests.test_artifact import CONTENT, fill


def write(out: Path, *, overwrite: bool = True) -> None:
    with staged_artifact(out, overwrite=overwrite) as stage:
        fill(stage)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"name": "app", "start_url": "/index.html", "icons": []}),
        json.dumps({"schema_version": 1, "files": {"index.html": {}}}),
        "{",
    ],
    ids=["a web app", "another schema", "no JSON"],
)
def test_a_folder_with_a_manifest_of_something_else_is_never_overwritten(
    tmp_path: Path, text: str
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text(text)
    (app / "index.html").write_text("<html>")
    with pytest.raises(ArtifactError, match="something else made its manifest") as caught:
        write(app)
    assert str(app) in caught.value.problem
    assert "remove this one yourself" in caught.value.fix
    assert names_in(app) == ["index.html", "manifest.json"]


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", ".git/HEAD", "checkpoint/a.bin"])
def test_files_that_the_manifest_does_not_name_are_named_and_kept(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(
        ArtifactError, match=f"it holds {name}, which something else made"
    ) as caught:
        write(out)
    assert "move that elsewhere" in caught.value.fix
    assert (out / name).read_text() == "mine"
    assert open_artifact(out, "full")


def test_a_link_to_a_folder_is_a_file_of_somebody(out: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (out / "data").symlink_to(tmp_path / "data")
    with pytest.raises(ArtifactError, match="it holds data, which"):
        write(out)


def test_of_many_files_some_are_named_and_the_others_counted(out: Path) -> None:
    for number in range(8):
        (out / f"{number}.txt").touch()
    with pytest.raises(ArtifactError, match=r"holds 0\.txt, 1\.txt, .*4\.txt and 3 more, which"):
        write(out)


def test_what_engines_and_other_programs_cache_does_not_stand_in_the_way(out: Path) -> None:
    caches = ("engines/onnxruntime/a.engine", "engines/.lock", "engines/sm90.runtime-cache")
    for name in (*caches, ".cache/huggingface/.gitignore", ".DS_Store", ".manifest.json.17"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    write(out)
    assert names_in(out) == sorted([*CONTENT, LAYOUT.manifest])


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    assert open_artifact(tmp_path / "a")


@pytest.mark.parametrize("name", ["art[12]", "art*", "art?", "[!a]rt1"])
def test_the_name_of_one_folder_means_no_other(tmp_path: Path, name: str) -> None:
    others = [".art1.partial-0123", ".art1.old-0123", ".art1.partial-4567"]
    for other in others:
        (tmp_path / other).mkdir()
        (tmp_path / other / "weights").touch()
    write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, name])


@pytest.mark.parametrize("name", ["art[12]", "art*", "my art"])
def test_what_a_dead_run_left_is_removed_and_put_back_whatever_the_name(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path / name)
    (tmp_path / name).rename(tmp_path / f".{name}.old-0123456789abcdef")
    (tmp_path / f".{name}.partial-0123456789abcdef").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        write(tmp_path / name, overwrite=False)
    assert open_artifact(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_that_somebody_set_aside_is_not_ours(out: Path) -> None:
    aside = shutil.copytree(out, out.with_name(".artifact.old-before-christmas"))
    write(out)
    assert open_artifact(aside, "full")


@pytest.mark.parametrize("inside", ["", "src/checkpoint", "new"])
def test_what_is_read_may_not_lie_in_what_is_replaced(out: Path, inside: str) -> None:
    link = out.with_name("link")
    link.symlink_to(out)
    for folder in (out, link):
        with pytest.raises(ArtifactError, match=f"the checkpoint {folder / inside} lies there"):
            refuse_inside(out, [("adapter", None), ("checkpoint", folder / inside)])
    with pytest.raises(ArtifactError, match="lies there, and would be removed"):
        refuse_inside(link, [("checkpoint", str(out / inside))])


def test_what_is_read_may_lie_around_and_beside(out: Path) -> None:
    refuse_inside(out, [("checkpoint", out.parent), ("base", out.with_name("artifact2"))])
