"""The real 135M model: exported graphs against the torch oracle, on real texts of 3-1,000 tokens.

`make real` runs it on 200 texts (NVEMBED_REAL_TEXTS); the default is fewer, for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.spec import PoolerForm, Precision
from tests.real.conftest import TEXTS

pytestmark = pytest.mark.real
Exported = Callable[..., Path]


def encode(artifact: Path, runtime: str = "onnx") -> np.ndarray:
    with load_encoder(artifact, runtime, device="cpu") as encoder:
        return encoder.encode(TEXTS)


def report(name: str, value: float) -> float:
    print(f"\n{name}: {value:.3g} over {len(TEXTS)} texts")
    return value


def test_float32_onnx_equals_the_oracle(exported: Exported, oracle_ND: np.ndarray) -> None:
    got = encode(exported(Precision.FP32))
    assert report("onnx fp32 max abs", np.abs(got - oracle_ND).max()) <= 2e-6


def test_float16_keeps_the_cosine(exported: Exported, oracle_ND: np.ndarray) -> None:
    cosines = (encode(exported(Precision.FP16)) * oracle_ND).sum(1)
    report("onnx fp16 1 - min cosine", 1 - cosines.min())
    assert report("onnx fp16 1 - mean cosine", 1 - cosines.mean()) <= 1e-5


def test_folded_equals_faithful(exported: Exported) -> None:
    folded = encode(exported(Precision.FP32))
    faithful = encode(exported(Precision.FP32, PoolerForm.FAITHFUL))
    assert report("folded - faithful max abs", np.abs(folded - faithful).max()) <= 2e-6


def test_a_batch_of_64_equals_one_at_a_time(exported: Exported) -> None:
    texts = (TEXTS * 3)[:64]
    texts = [f"{i} {text}"[:1200] for i, text in enumerate(texts)]
    with load_encoder(exported(Precision.FP32), "onnx", device="cpu") as encoder:
        encoder.limits = type(encoder.limits)(max_batch_tokens=10**9, max_padding_tokens=10**9)
        together = encoder.encode(texts, batch_size=64)
        alone = np.stack([encoder.encode(text) for text in texts[::4]])
    assert report("batch of 64 - alone max abs", np.abs(together[::4] - alone).max()) <= 2e-6
