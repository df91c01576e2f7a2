"""What competitors load, and that they do not hold it twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from nvembed_deploy.bench.competitors.weights import WEIGHTS, load

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_need_no_conversion_are_the_mapped_file(
    prepared: Path, dtype: torch.dtype
) -> None:
    model = load(prepared, dtype, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    places = {parameter.data_ptr() for parameter in model.parameters()}
    inside = {
        place for place in places if any(place in part for part in mapped(prepared / WEIGHTS))
    }
    assert inside == (places if dtype is torch.float32 else set())


def mapped(path: Path) -> list[range]:
    """Return where this process has the file in memory: other tests' models may hold it too."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    ends = [line.split(maxsplit=1)[0].split("-") for line in lines]
    return [range(int(start, 16), int(stop, 16)) for start, stop in ends]
