"""This file owns calibration.json: the ranges an export found, from what texts, to be used again.

An artifact keeps what its calibration saw. Another export of the same checkpoint can take the
static ranges from there, without texts and in seconds, and gets the same ones to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nvembed_deploy.artifact import LAYOUT
from nvembed_deploy.errors import ArtifactError, RecipeError
from nvembed_deploy.export.provenance import NAMED_LATER


class LinearRange(NamedTuple):
    """Of a linear: the largest absolute input seen, and its scale if the range is static.

    The scale is a float16 value; a code times the scale is the input. `output` is the largest
    absolute output, where calibration kept it (FP8 attention has its ranges from there).
    """

    largest: float
    scale: float | None
    output: float | None = None


@dataclass(frozen=True)
class TextFacts:
    """What was calibrated on; `sha256` is of the token ids and masks, batch by batch."""

    sha256: str
    texts: int
    tokens: int
    seed: int


@dataclass(frozen=True)
class CalibrationRecord:
    """What calibration.json holds.

    `checkpoint` maps the checkpoint's files to their sha256, as the manifest's `source` does;
    `rotation` is the rotation's seed, None where the model was not rotated.
    """

    checkpoint: dict[str, str]
    rotation: int | None
    texts: TextFacts
    ranges: dict[str, LinearRange]

    @property
    def per_token(self) -> tuple[str, ...]:
        """The linears that had no one range for all tokens."""
        return tuple(name for name, found in self.ranges.items() if found.scale is None)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        ranges = {name: found._asdict() for name, found in self.ranges.items()}
        data = {**asdict(self), "ranges": ranges}
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, artifact: Path) -> CalibrationRecord:
        """Read it from an artifact's folder.

        Raises:
            ArtifactError: there is none, or it is not one.
        """
        path = artifact / LAYOUT.calibration
        if not artifact.is_dir():
            raise ArtifactError(f"ranges: there is no folder {artifact}", "correct the path")
        try:
            data: Any = json.loads(path.read_text(encoding="utf-8"))
            ranges = {
                name: LinearRange(
                    float(found["largest"]), _number(found["scale"]), _number(found.get("output"))
                )
                for name, found in data["ranges"].items()
            }
            texts = TextFacts(**data["texts"])
            return cls(dict(data["checkpoint"]), data["rotation"], texts, ranges)
        except FileNotFoundError:
            raise ArtifactError(
                f"{artifact} holds no {LAYOUT.calibration}: it was not calibrated",
                "name an artifact that was exported with compensated rounding",
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}", "export that artifact again"
            ) from error

    def check(
        self,
        checkpoint: dict[str, str],
        rotation: int | None,
        static: Sequence[str],
        outputs: Sequence[str] = (),
    ) -> None:
        """Refuse to be used for another model than the one whose ranges these are.

        Args:
            checkpoint: as `self.checkpoint`; what older records do not name is not compared.
            rotation: as `self.rotation`.
            static: the linears that need a scale.
            outputs: those whose largest output is needed.

        Raises:
            RecipeError: checkpoint or rotation differ, or a linear has no scale.
        """
        later = [name for name in NAMED_LATER if name not in self.checkpoint]
        named = {name: sha256 for name, sha256 in checkpoint.items() if name not in later}
        if self.checkpoint != named:
            names = sorted({*self.checkpoint.items()} ^ {*named.items()})
            changed = ", ".join(dict.fromkeys(name for name, _ in names))
            problem = f"they are another checkpoint's: {changed} differs"
        elif self.rotation != rotation:
            here, there = (
                f"seed {s}" if s is not None else "none" for s in (rotation, self.rotation)
            )
            problem = f"they are of another precision or seed: rotation {here} here, {there} there"
        else:
            missing = [n for n in static if n not in self.ranges or not self.ranges[n].scale]
            missing += [n for n in outputs if n not in self.ranges or not self.ranges[n].output]
            if not missing:
                return
            problem = f"{len(missing)} linears have no such range there, as {missing[0]}"
        raise RecipeError(
            f"ranges cannot be used again: {problem}",
            "remove ranges, so that the export is calibrated; or give the recipe they are from",
        )


def _number(value: Any) -> float | None:  # noqa: ANN401 - JSON
    return None if value is None else float(value)
