"""This file owns one side of a check: which model, what computes it, and its cache's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nvembed_deploy.checkpoint import open_checkpoint
from nvembed_deploy.errors import HardwareError, InputError, is_out_of_memory
from nvembed_deploy.parity.basis import manifest_of
from nvembed_deploy.parity.subject import Subject
from nvembed_deploy.parity.versions import COMPUTING, versions
from nvembed_deploy.runtimes import Encoder, RuntimeOptions, load_encoder
from nvembed_deploy.spec import Precision
from nvembed_deploy.stamps import stamps_of


@dataclass(frozen=True)
class Side:
    """Which model, and what computes it."""

    path: Path
    runtime: str = "auto"
    device: str | None = None
    reference_dtype: Precision = Precision.FP32
    """What the reference runtime computes in, on a GPU too: its rounding would be held against the
    artifact."""

    @property
    def is_as_trained(self) -> bool:
        """Whether the reference runtime computes it: a checkpoint, unless another is named."""
        return self.runtime == "reference" or (
            self.runtime == "auto" and manifest_of(self.path) is None
        )

    @property
    def dtype(self) -> Precision | None:
        """What it is told to compute in; None where that is the artifact's or the runtime's own."""
        return self.reference_dtype if self.is_as_trained else None

    @property
    def opened_by(self) -> str:
        """The runtime that is asked for; "auto" of an artifact depends on the machine."""
        return "reference" if self.is_as_trained else self.runtime


def check_dtype(sides: Iterable[Side]) -> None:
    """Refuse a number format of the reference runtime where no side runs in it.

    Raises:
        InputError: the format would be for nothing.
    """
    sides = list(sides)
    asked = sides[0].reference_dtype
    if asked is not Precision.FP32 and not any(side.is_as_trained for side in sides):
        raise InputError(
            f"--reference-dtype {asked} was given, and nothing here runs as it was trained",
            "leave it out: an artifact has a number format of its own",
        )


def open_subject(name: str, side: Side, cache: Path, stack: ExitStack) -> Subject:
    """Open one side; the stack closes it. A checkpoint runs as it was trained by default.

    Raises:
        HardwareError: a checkpoint does not fit into the GPU's memory.
        NVEmbedError: the side cannot be opened.
    """
    options = RuntimeOptions(device=side.device, dtype=side.dtype)
    with _told_if_full(side):
        encoder = stack.enter_context(load_encoder(side.path, side.opened_by, options=options))
    return Subject.open(name, encoder, cache / model_key(side, encoder))


@contextmanager
def _told_if_full(side: Side) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if side.dtype is None or not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise HardwareError(
            f"{side.path} in {side.dtype} does not fit into the GPU's memory: {reason}",
            "--reference-dtype bf16 takes half of what fp32 takes, and its rounding is then in the "
            "differences; --device cpu needs no GPU",
        ) from error


def model_key(side: Side, encoder: Encoder) -> str:
    """Return the name of a model's cache: the folder's own, and a hash of what computes its rows.

    That is the model (an artifact's files by sha256; a checkpoint's, wherever they lie, by size and
    time, since its weights take long to read), its spec, the runtime, the device, the number format
    it was told, and the versions of the packages that compute. The GPU's model is not in it.
    """
    manifest = manifest_of(side.path)
    if manifest is None:
        files = stamps_of(open_checkpoint(side.path))
    else:
        files = {name: record.sha256 for name, record in manifest.files.items()}
    runtime = [encoder.runtime.name, encoder.runtime.device, side.dtype]
    facts = [files, asdict(encoder.spec), runtime, versions(COMPUTING)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{side.path.resolve().name}-{digest[:16]}"
