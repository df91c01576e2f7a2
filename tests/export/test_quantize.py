"""Tests of nvembed_deploy/export/quantize.py and formats.py."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from nvembed_deploy.errors import RecipeError
from nvembed_deploy.export.formats import SCHEMES, Activations, Code, Formats, LinearFormat
from nvembed_deploy.export.quantize import (
    find_scales,
    round_nearest,
    round_to_code,
    to_codes,
)
from nvembed_deploy.export.quantized import pack_int4
from nvembed_deploy.export.recipe import load_recipe
from tests import factories

WEIGHT = factories.values("weight", (24, 64)) * np.linspace(0.01, 3, 24, dtype=np.float32)[:, None]
GIVEN = torch.from_numpy(WEIGHT)
BOUNDS = {Code.INT8: 1 / 254, Code.FP8: 1 / 16, Code.INT4: 1 / 14}
"""Half a step, as a fraction of the row's largest value (integers) or of the value (FP8)."""


@pytest.mark.parametrize("code", [Code.INT8, Code.FP8])
def test_no_weight_moves_more_than_half_a_step(code: Code) -> None:
    quantized = round_nearest(GIVEN, LinearFormat(code, Activations.FLOAT))
    error = np.abs(quantized.dequantize() - WEIGHT)
    largest = np.abs(WEIGHT).max(1, keepdims=True)
    assert (error <= BOUNDS[code] * largest * 1.01).all()


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("block", [None, 16])
def test_codes_stay_in_a_symmetric_range_and_scales_are_float16(
    code: Code, block: int | None
) -> None:
    quantized = round_nearest(GIVEN, LinearFormat(code, Activations.FLOAT, block))
    assert np.abs(quantized.codes_OI.astype(np.float32)).max() <= code.greatest
    assert quantized.scale_OG.shape == (24, 1 if block is None else 4)
    np.testing.assert_array_equal(quantized.scale_OG, quantized.scale_OG.astype(np.float16))


def test_smaller_blocks_round_finer() -> None:
    errors = [
        np.square(
            round_nearest(GIVEN, LinearFormat(Code.INT4, Activations.FLOAT, block)).dequantize()
            - WEIGHT
        ).sum()
        for block in (None, 32, 16)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_the_searched_scale_is_no_worse_than_the_full_range() -> None:
    form = LinearFormat(Code.INT4, Activations.FLOAT)
    full_O1 = (np.abs(WEIGHT).max(1, keepdims=True) / 7).astype(np.float16).astype(np.float32)
    naive = np.square(np.clip(np.rint(WEIGHT / full_O1), -7, 7) * full_O1 - WEIGHT).sum(1)
    got = np.square(round_nearest(GIVEN, form).dequantize() - WEIGHT).sum(1)
    assert (got <= naive * 1.0001).all()
    assert got.sum() < naive.sum()


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 32)
    weight[1] = 1
    for code in Code:
        got = round_nearest(weight, LinearFormat(code, Activations.FLOAT)).dequantize()
        assert not got[0].any()
        np.testing.assert_allclose(got[1], 1, rtol=1e-3)


def test_quantising_twice_changes_nothing() -> None:
    form = LinearFormat(Code.INT8, Activations.FLOAT)
    once = round_nearest(GIVEN, form).dequantize()
    np.testing.assert_allclose(
        round_nearest(torch.from_numpy(once), form).dequantize(), once, rtol=2e-3, atol=1e-6
    )


@pytest.mark.parametrize("code", list(Code))
def test_codes_are_what_the_formats_own_libraries_round_to(code: Code) -> None:
    values = np.concatenate([np.linspace(-500, 500, 4001), np.geomspace(1e-4, 500, 999)])
    values = values.astype(np.float32).clip(-code.greatest, code.greatest)
    expected = values.astype(ml_dtypes.float8_e4m3fn) if code is Code.FP8 else np.rint(values)
    codes = to_codes(torch.from_numpy(values), code)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(round_to_code(torch.from_numpy(values), code).numpy(), expected)


def test_a_long_row_is_not_clipped_for_its_many() -> None:
    """One weight of 5,000 is large: the sample that decides must hold it wherever it is."""
    weight_OI = factories.values("long", (4, 5000)) * 0.02
    weight_OI[np.arange(4), [1, 4999, 2500, 3]] = 3
    quantized = round_nearest(
        torch.from_numpy(weight_OI), LinearFormat(Code.FP8, Activations.FLOAT)
    )
    assert np.abs(quantized.dequantize()).max(1) == pytest.approx(3, rel=0.04)


def test_what_is_looked_at_of_a_long_row_stands_for_all_of_it() -> None:
    """The largest, which are all looked at, must not count as much as the many."""
    weight_OI = torch.randn(8, 40_000, generator=torch.Generator().manual_seed(0))
    form = LinearFormat(Code.INT4, Activations.FLOAT)
    full_O1, errors = weight_OI.abs().amax(1, keepdim=True) / 7, []
    for scale_O1 in (
        *(full_O1 * (1 - 0.05 * step) for step in range(10)),
        find_scales(weight_OI, form),
    ):
        rounded = round_to_code(weight_OI / scale_O1, Code.INT4) * scale_O1
        errors.append((rounded - weight_OI).square().sum(1))
    assert (errors[-1] <= 1.15 * torch.stack(errors[:-1]).amin(0)).all()


def test_fp8_codes_never_become_nan() -> None:
    codes = to_codes(torch.tensor([1e9, -1e9, 448.0, 460.0]), Code.FP8)
    assert codes.dtype == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(codes.astype(np.float32), [448, -448, 448, 448])


def test_rounding_to_e4m3_is_torchs_to_the_bit() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = codes[codes.isfinite()].unique()
    between = (grid[1:] + grid[:-1]) / 2
    some = torch.from_numpy(factories.values("some", (40, 1000))).flatten()
    x = torch.cat([grid, between, some, some * 300, some * 2**-7, some * 1e-4])
    x = torch.cat([x, x.nextafter(torch.tensor(torch.inf)), x.nextafter(-torch.tensor(torch.inf))])
    x = x.clamp(-448, 448)
    rounded = round_to_code(x, Code.FP8)
    assert torch.equal(rounded, x.to(torch.float8_e4m3fn).float())
    assert len(rounded.unique()) == len(grid)


def test_packing_is_onnx_own() -> None:
    codes = (np.arange(24) % 15 - 7).astype(np.int8).reshape(4, 6)
    expected = onnx.helper.make_tensor("t", onnx.TensorProto.INT4, (4, 6), codes.ravel())
    packed = pack_int4(codes)
    assert packed.shape == (4, 3)
    assert packed.tobytes() == bytes(expected.int32_data) or packed.tobytes() == expected.raw_data
    unpacked = onnx.numpy_helper.to_array(
        onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=(4, 6), raw_data=packed.tobytes())
    )
    np.testing.assert_array_equal(unpacked.astype(np.int8), codes)


class TestFormats:
    def test_a_pattern_keeps_linears(self) -> None:
        formats = Formats(SCHEMES["int8"].linear, keep=("pooler.*", "*.layers.0.*"))
        assert formats.of("pooler.scores", 64) is None
        assert formats.of("backbone.layers.0.mlp.up_proj", 64) is None
        assert formats.of("backbone.layers.10.mlp.up_proj", 64) == SCHEMES["int8"].linear

    def test_what_4_bit_keeps_is_in_8_bit_whatever_its_size(self) -> None:
        formats = load_recipe(None, {"precision": "int4-weight", "keep": ["pooler.*"]}).formats
        assert formats.of("pooler.scores", 97) == SCHEMES["int8-weight"].linear
        other = formats.of("backbone.layers.0.mlp.up_proj", 128)
        assert other == SCHEMES["int4-weight"].linear

    def test_a_block_is_halved_until_it_divides_the_inputs(self) -> None:
        formats = Formats(SCHEMES["int4-weight"].linear)
        blocks = {inputs: formats.of("x", inputs) for inputs in (4096, 576, 96)}
        assert [form.block for form in blocks.values() if form] == [128, 64, 32]

    def test_inputs_that_no_block_divides_are_refused_by_name(self) -> None:
        with pytest.raises(RecipeError, match="x has 100 inputs"):
            Formats(SCHEMES["int4-weight"].linear).of("x", 100)

    def test_layers_alike_are_one_name(self) -> None:
        names = [f"a.{layer}.{linear}" for layer in range(12) for linear in ("up", "down")]
        formats = Formats(SCHEMES["int4-weight"].linear, keep=("*.up",))
        with pytest.raises(RecipeError) as caught:
            formats.check_blocks({**dict.fromkeys(names, 40), "b": 64, "c": 8})
        assert caught.value.problem.startswith("a.*.down has 40 inputs, c has 8 inputs, which no")
        assert caught.value.fix.endswith('keep = ["*.up", "a.*.down", "c"]')
        Formats(SCHEMES["int8"].linear).check_blocks({"c": 8})  # has no blocks


def test_scales_of_blocks_are_those_of_the_blocks_alone() -> None:
    form = LinearFormat(Code.INT4, Activations.FLOAT, block=16)
    scale_OG = find_scales(GIVEN, form)
    for block in range(4):
        part = GIVEN[:, block * 16 : block * 16 + 16]
        alone = find_scales(part, LinearFormat(Code.INT4, Activations.FLOAT))
        np.testing.assert_array_equal(scale_OG[:, block : block + 1], alone)


@pytest.mark.parametrize("code", list(Code))
def test_scales_do_not_depend_on_how_many_rows_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch, code: Code
) -> None:
    form = LinearFormat(code, Activations.FLOAT)
    together = find_scales(GIVEN, form)
    monkeypatch.setattr("nvembed_deploy.export.quantize._ROWS", 5)
    np.testing.assert_array_equal(find_scales(GIVEN, form), together)
