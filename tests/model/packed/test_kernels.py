"""Tests of the arithmetic between products."""

from __future__ import annotations

import torch

from nvembed_deploy.model.packed.kernels import (
    FP8,
    FP8_MAX,
    Kernels,
    Rounded,
    add_rms_norm,
    rms_norm,
    rotate,
    silu_gate,
    to_fp8_rows,
)


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


def arguments(rows: int) -> dict[str, tuple[object, ...]]:
    """Return arguments of each kernel, of so many rows and always the same widths."""
    states, gain = torch.randn(rows, 64), torch.randn(64)
    angles = torch.randn(rows, 1, 4), torch.randn(rows, 1, 4)
    return {
        "rms_norm": (states, gain, 1e-6, FP8),
        "add_rms_norm": (states, states.bfloat16(), gain, 1e-6, torch.bfloat16),
        "layer_norm": (states, gain, gain, 1e-6),
        "rotate": (states.view(rows, 8, 8), *angles),
        "silu_gate": (states.bfloat16(), FP8),
        "gelu_gate": (states,),
        "to_fp8_rows": (states,),
        "to_wide_fp8_rows": (states, torch.randn(rows, 16)),
    }


def test_every_kernel_has_arguments_here():
    assert arguments(1).keys() == Kernels.__dataclass_fields__.keys()


def test_a_compiled_kernel_serves_all_numbers_of_rows_but_one():
    """Widths stay constants: 64 rows of 64 values do not make them vary."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: object):
        graphs.append(graph)
        return graph.forward

    compiled = Kernels.compiled(count)
    for rows in (7, 64, 9, 3, 2, 300):
        for name, args in arguments(rows).items():
            getattr(compiled, name)(*args)
    assert len(graphs) == len(arguments(1))
    for graph in graphs:
        inputs = [n.meta["example_value"] for n in graph.graph.nodes if n.op == "placeholder"]
        assert sum(isinstance(value, torch.SymInt) for value in inputs) == 1
    for name, args in arguments(1).items():
        getattr(compiled, name)(*args)
    assert len(graphs) == 2 * len(arguments(1))


def test_two_models_compile_apart():
    """What one GPU compiles does not count against another's limit."""
    count: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object):
        count.append(graph)
        return graph.forward

    for _ in range(12):
        Kernels.compiled(backend).gelu_gate(torch.randn(5, 64))
    assert len(count) == 12


def test_compiled_kernels_give_the_numbers_of_the_plain_ones():
    torch.manual_seed(0)
    compiled, plain = Kernels.compiled("eager"), Kernels()
    for name, args in arguments(5).items():
        torch.testing.assert_close(getattr(compiled, name)(*args), getattr(plain, name)(*args))


def test_rounding_with_the_norm_is_rounding_after_it():
    torch.manual_seed(0)
    states, update, gain = torch.randn(5, 64), torch.randn(5, 64).bfloat16(), torch.randn(64)
    total, rounded = add_rms_norm(states, update, gain, 1e-6, FP8)
    torch.testing.assert_close(total, states + update.float(), rtol=0, atol=0)
    assert isinstance(rounded, Rounded)
    apart = to_fp8_rows(rms_norm(total, gain, 1e-6, torch.float32))
    assert torch.equal(rounded.codes.float(), apart.codes.float())
    assert torch.equal(rounded.scale, apart.scale)
    gated = silu_gate(torch.randn(5, 64), FP8)
    assert isinstance(gated, Rounded)
    assert gated.codes.shape == (5, 32)
