"""This file owns where torch runs and in which number format."""

from __future__ import annotations

import torch

from nvembed_deploy.errors import HardwareError
from nvembed_deploy.model.device import find_device
from nvembed_deploy.runtimes.protocol import RuntimeOptions
from nvembed_deploy.spec import Precision

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
_FP8_CAPABILITY = (8, 9)


def torch_device(options: RuntimeOptions) -> torch.device:
    """Return the device asked for, or a GPU where there is one.

    Raises:
        HardwareError: the device asked for is not there.
    """
    if options.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return find_device(options.device)


def torch_dtype(options: RuntimeOptions, stored: Precision, device: torch.device) -> torch.dtype:
    """Return the format asked for; else float32 on a processor and `stored` on a GPU."""
    default = Precision.FP32 if device.type == "cpu" else stored
    return _DTYPES[options.dtype or default]


def check_fp8(device: torch.device, what: str, instead: str) -> None:
    """Refuse FP8 products where no tensor core does them.

    Args:
        device: where they would run.
        what: needs them; the message begins with it.
        instead: what to do without them.

    Raises:
        HardwareError: the device is no GPU, or one before compute capability 8.9.
    """
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < _FP8_CAPABILITY:
        gpu = f"SM {found[0]}.{found[1]}" if found else "no NVIDIA GPU"
        raise HardwareError(
            f"{what}, and {device} is {gpu}: FP8 products need SM 8.9 or later",
            f"{instead}, or use an L4, RTX 40, H100 or later",
        )
