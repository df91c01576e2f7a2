"""Tests of the arithmetic between products."""

from __future__ import annotations

import torch

from nvembed_deploy.model.packed.kernels import FP8_MAX, Kernels, rotate, to_fp8_rows


def test_rotation_keeps_lengths_and_depends_on_distance():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 8)
    frequency = 100.0 ** (-torch.arange(0, 8, 2) / 8)

    def turned(x: torch.Tensor, position: float) -> torch.Tensor:
        angle = position * frequency
        return rotate(x, angle.cos(), angle.sin())

    torch.testing.assert_close(turned(query, 5).norm(), query.norm())
    near = (turned(query, 3) * turned(key, 1)).sum()
    far = (turned(query, 103) * turned(key, 101)).sum()
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)


def test_each_row_fills_the_range_of_fp8():
    torch.manual_seed(0)
    rows = torch.randn(5, 64) * torch.tensor([1e-3, 1, 10, 1e4, 0])[:, None]
    codes, scale = to_fp8_rows(rows)
    assert codes.float().abs().amax(1).tolist() == [FP8_MAX] * 4 + [0]
    step = rows.abs() / 16 + scale * 2.0**-10  # 3 bits after the point, or half a subnormal
    assert ((codes.float() * scale - rows).abs() <= step).all()


def test_every_kernel_can_be_compiled():
    names = set(Kernels.__dataclass_fields__)
    compiled = Kernels.compiled()
    assert {
        name for name in names if getattr(compiled, name) is not getattr(Kernels, name)
    } == names
