"""Tests of which linears the packed model keeps in FP8."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvembed_deploy.model.packed.kernels import Kernels
from nvembed_deploy.model.packed.linear import DenseLinear, Fp8Linear, JoinedLinear
from nvembed_deploy.model.packed.loader import Loader
from nvembed_deploy.model.packed.reader import Codes

RNG = np.random.default_rng(0)
WEIGHTS = {
    "wide": RNG.standard_normal((48, 32)).astype(np.float32),
    "odd": RNG.standard_normal((24, 32)).astype(np.float32),
}


def stored(name: str) -> Codes | None:
    """Return a weight as an artifact stores it in FP8, [in, out]."""
    scale_O = np.abs(WEIGHTS[name]).max(1) / 448
    codes_OI = torch.from_numpy(WEIGHTS[name] / scale_O[:, None]).to(torch.float8_e4m3fn)
    return Codes(np.ascontiguousarray(codes_OI.view(torch.uint8).numpy().T), scale_O)


def loader(**options) -> Loader:
    def read(name: str) -> np.ndarray:
        return WEIGHTS[name.removesuffix(".weight")]

    return Loader(read, torch.float32, torch.device("cpu"), Kernels(), **options)


@pytest.mark.parametrize("options", [{"is_fp8": True}, {"codes": stored}])
def test_what_fp8_products_do_not_take_and_few_rows_go_through_is_dense(options):
    fp8 = loader(**options)
    assert isinstance(fp8.linear("wide"), Fp8Linear)
    assert isinstance(fp8.linear("odd"), DenseLinear)
    assert isinstance(fp8.linear("wide", is_dense=True), DenseLinear)


def test_a_dense_linear_of_stored_codes_has_their_values():
    dense, coded = (loader(codes=stored).linear("wide", is_dense=d) for d in (True, False))
    assert isinstance(coded, Fp8Linear)
    assert isinstance(dense, DenseLinear)
    values_OI = coded.codes_OI.float() * coded.scale_O[:, None]
    torch.testing.assert_close(dense.weight_OI, values_OI)
    assert np.abs(dense.weight_OI.numpy() - WEIGHTS["wide"]).max() < 0.2


def test_linears_stored_in_different_ways_take_what_all_of_them_take():
    mixed = loader(codes=lambda name: stored(name) if name == "wide" else None)
    joined = mixed.linear("wide", "odd")
    assert isinstance(joined, JoinedLinear)
    assert joined.takes is torch.float32
    assert joined(torch.randn(3, 32)).shape == (3, 72)
