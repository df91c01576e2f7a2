"""Tests of nvembed_deploy/train/data/embeddings.py: what was computed is never computed again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.model.assemble import Parts, assemble_checkpoint
from nvembed_deploy.train.data.embeddings import EmbeddingStore, folder_id
from tests import factories
from tests.train.data.teacher import LetterTeacher, unit

TEXTS = [letter * count + "h" for count in (1, 2, 3) for letter in "abcdefg"]
EXPECTED = np.stack([unit(text) for text in TEXTS])
KILLED = """
from pathlib import Path
from nvembed_deploy.train.data.embeddings import EmbeddingStore
from tests.train.data.teacher import LetterTeacher
from tests.train.data.test_embeddings import TEXTS
EmbeddingStore(Path({folder!r}), LetterTeacher(dies_at={at}), "t", chunk_texts=4).embed(TEXTS)
"""


def store(folder: Path, teacher_id: str = "t") -> tuple[EmbeddingStore, LetterTeacher]:
    teacher = LetterTeacher()
    return EmbeddingStore(folder, teacher, teacher_id, chunk_texts=4), teacher


def test_rows_are_the_teachers_in_order_and_are_kept(tmp_path: Path) -> None:
    first, teacher = store(tmp_path)
    advanced: list[int] = []
    assert np.array_equal(first.embed(TEXTS, advance=advanced.append), EXPECTED)
    assert teacher.texts == TEXTS
    assert sum(advanced) == len(TEXTS)
    second, teacher = store(tmp_path)
    rows = second.embed(TEXTS)
    assert (np.array_equal(rows, EXPECTED), teacher.texts) == (True, [])
    assert isinstance(rows, np.memmap)


def test_other_texts_instructions_and_teachers_are_other_rows(tmp_path: Path) -> None:
    first, teacher = store(tmp_path)
    first.embed(["ab", "c"])
    first.embed(["a", "bc"])
    assert np.array_equal(first.embed(["ab", "c"], instruction="h")[0], unit("ab", "h"))
    store(tmp_path, "another")[0].embed(["ab", "c"])
    assert len(teacher.texts) == 6
    assert len(list(tmp_path.glob("*.f32"))) == 4


@pytest.mark.parametrize("at", [1, 5, 9, 21])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, at: int) -> None:
    code = KILLED.format(folder=str(tmp_path), at=at)
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False)
    assert done.returncode == -9
    again, teacher = store(tmp_path)
    assert np.array_equal(again.embed(TEXTS), EXPECTED)
    assert teacher.texts == TEXTS[(at - 1) // 4 * 4 :]


@pytest.mark.parametrize("lost_bytes", [1, 4, 31, 32, 33, 640])
def test_a_row_half_written_is_written_again(tmp_path: Path, lost_bytes: int) -> None:
    store(tmp_path)[0].embed(TEXTS)
    (file,) = tmp_path.glob("*.f32")
    os.truncate(file, file.stat().st_size - lost_bytes)
    again, teacher = store(tmp_path)
    assert np.array_equal(again.embed(TEXTS), EXPECTED)
    assert len(teacher.texts) == -(-lost_bytes // 32)


def test_two_runs_do_not_write_the_same_rows(tmp_path: Path) -> None:
    class Rival(LetterTeacher):
        def encode(self, inputs, *, instruction=None):
            with pytest.raises(InputError, match="another run is writing"):
                store(tmp_path)[0].embed(TEXTS)
            return super().encode(inputs, instruction=instruction)

    rows = EmbeddingStore(tmp_path, Rival(), "t").embed(TEXTS)
    assert np.array_equal(rows, EXPECTED)


def test_an_artifacts_id_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"1")
    before = folder_id(tmp_path)
    assert folder_id(tmp_path) == before
    os.utime(tmp_path / "manifest.json", (1, 1))
    touched = folder_id(tmp_path)
    (tmp_path / "more").write_bytes(b"")
    assert len({before, touched, folder_id(tmp_path)}) == 3


def test_a_checkpoints_id_changes_with_its_base_wherever_that_lies(
    tmp_path: Path, tiny_pooler: Path
) -> None:
    base, checkpoint = factories.write_base(tmp_path / "base"), tmp_path / "checkpoint"
    parts = Parts(base, pooler=tiny_pooler, pooler_spec=factories.TINY.pooler, name="tiny")
    assemble_checkpoint(parts, checkpoint)
    before = folder_id(checkpoint)
    assert folder_id(checkpoint) == before
    os.utime(next(base.glob("*.safetensors")), (1, 1))
    assert folder_id(checkpoint) != before
