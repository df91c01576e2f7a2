"""NV-Embed embedders from training to serving: export, run and verify.

This file owns the package's version and its one shortcut, `load_encoder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvembed_deploy.runtimes import load_encoder

__all__ = ["__version__", "load_encoder"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 signature
    if name == "load_encoder":
        from nvembed_deploy.runtimes import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
