"""This file owns the errors users see, and the exit code of each.

Every error says what is wrong (`problem`: what, where, got, expected) and what to do (`fix`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class NVEmbedError(Exception):
    """An error with a remedy. The command line prints it as two lines, without a traceback."""

    exit_code: ClassVar[int] = 2

    def __init__(self, problem: str, fix: str) -> None:
        """Keep both halves: `problem` (what, where, got, expected) and `fix` (what to do)."""
        super().__init__(f"{problem}\n  fix: {fix}")
        self.problem = problem
        self.fix = fix


class CheckpointError(NVEmbedError):
    """A checkpoint folder, or a tensor in it, is not what it should be."""


LFS_POINTER = b"version https://git-lfs"
"""What a file begins with that git-LFS has left in the place of another."""


def refuse_lfs_pointer(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes are those of a git-LFS pointer.

    Raises:
        CheckpointError: they are.
    """
    if head.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a git-LFS pointer, not the file itself", "fetch it: git lfs pull"
        )


class ArtifactError(NVEmbedError):
    """An artifact folder is incomplete, damaged or does not fit this use of it."""


class RecipeError(NVEmbedError):
    """A recipe file or an option holds a value that cannot be used."""


class InputError(NVEmbedError):
    """A text or an argument of `encode` cannot be used."""


class TextError(InputError):
    """One of many texts cannot be used; `index` says which."""

    def __init__(self, index: int, problem: str, fix: str) -> None:
        """Name the text: `problem` is what follows its name in the sentence."""
        super().__init__(f"inputs[{index}] {problem}", fix)
        self.index = index
        self._problem = problem

    def at(self, index: int) -> TextError:
        """Return the same error with the text's place in a longer list."""
        return TextError(index, self._problem, self.fix)


class GateError(NVEmbedError):
    """A check ran and failed: the numbers are outside the tolerance."""

    exit_code = 1


class MissingPackageError(NVEmbedError):
    """An optional package is not installed."""

    exit_code = 3


class HardwareError(NVEmbedError):
    """This machine lacks what was asked for (a GPU, an execution provider)."""

    exit_code = 3


_OUT_OF_MEMORY = ("can't allocate memory", "Failed to allocate memory", "ALLOC_FAILED")
"""What torch says on a processor, ONNX Runtime anywhere, and CUDA's libraries
(CUBLAS_STATUS_ALLOC_FAILED, CUSOLVER_...): plain errors, whose words alone tell."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error, of whatever package, is for want of memory: there may be some later."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or any(words in str(error) for words in _OUT_OF_MEMORY)
