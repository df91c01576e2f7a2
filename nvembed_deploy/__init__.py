"""NV-Embed embedders from training to serving: export, run and verify.

This file owns the package's version and its shortcuts, which import nothing until they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvembed_deploy.runtimes import RuntimeOptions, load_encoder
    from nvembed_deploy.runtimes.embedding_precision import quantize_embeddings

__all__ = ["RuntimeOptions", "__version__", "load_encoder", "quantize_embeddings"]

__version__ = "0.1.0"


_HOMES = {
    "RuntimeOptions": "nvembed_deploy.runtimes",
    "load_encoder": "nvembed_deploy.runtimes",
    "quantize_embeddings": "nvembed_deploy.runtimes.embedding_precision",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 signature
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
