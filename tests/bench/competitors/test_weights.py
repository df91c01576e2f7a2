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
    mapped = str(prepared / WEIGHTS) in Path("/proc/self/maps").read_text()
    assert mapped is (dtype is torch.float32)
