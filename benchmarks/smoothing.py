"""This file owns SmoothQuant on a layer in memory: channels' sizes moved from inputs to weights.

Each input channel of linears is divided by a factor, which its producer (a norm's gain, the rows of
v_proj or up_proj) takes, and the weights are multiplied by it: exact until something is rounded.
Source: arXiv 2211.10438, section 4, equation 4; the exponent is searched for each group of linears
that read one input. Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from nvembed_deploy.export.formats import Activations, LinearFormat
from nvembed_deploy.export.graph_linear import GraphLinear, first_of, round_rows
from nvembed_deploy.export.quantize import round_nearest, round_to_code
from nvembed_deploy.export.ranges import InputObserver, SeenInputs

_ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Tried beside no smoothing at all."""
_LEAST = 1e-5


def smooth(layer: nn.Module, head_width: int, seen: InputObserver) -> dict[str, float]:
    """Smooth a float layer's inputs, each with the exponent that rounds best; return them.

    Args:
        layer: a decoder layer whose linears are `GraphLinear`.
        head_width: of a head of v_proj and o_proj.
        seen: what went into the linears on calibration texts.
    """
    linears = {name.split(".")[-1]: linear for name, linear in _linears(layer)}
    producers: dict[str, Callable[[torch.Tensor], None]] = {
        "q_proj": layer.input_layernorm.weight.div_,
        "gate_proj": layer.post_attention_layernorm.weight.div_,
        "o_proj": lambda by: _divide_rows(
            linears["v_proj"], _first_of_group(by, linears, head_width)
        ),
        "down_proj": lambda by: _divide_rows(linears["up_proj"], by),
    }
    found = {}
    for kind, divide in producers.items():
        first = linears[kind]
        group = [linear for linear in linears.values() if first_of(linear.name) == first.name]
        if first.form is None or first.features is not None:
            continue  # a product between the two: nothing can take the factor
        tie = (lambda x: _tied(x, linears, head_width)) if kind == "o_proj" else (lambda x: x)
        alpha, by_I = _search(group, seen.seen[first.name], tie)
        found[first.name] = alpha
        divide(by_I)
        for linear in group:
            linear.weight_OI.mul_(by_I)
        _divide_seen(seen.seen[first.name], by_I)
    return found


def _linears(layer: nn.Module) -> list[tuple[str, GraphLinear]]:
    return [(name, m) for name, m in layer.named_modules() if isinstance(m, GraphLinear)]


def _search(
    group: Sequence[GraphLinear],
    seen: SeenInputs,
    tie: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[float, torch.Tensor]:
    """Return the exponent and the factors with the least error in the outputs."""
    form = group[0].form
    assert form is not None
    rows_NI, weights_N1 = torch.cat(seen.rows_NI), torch.cat(seen.weights_N1)
    inputs_I = tie(rows_NI.abs().amax(0).clamp(min=_LEAST))
    weights_I = tie(
        torch.stack([g.weight_OI.abs().amax(0) for g in group]).amax(0).clamp(min=_LEAST)
    )
    best = (0.0, torch.ones_like(inputs_I))
    least = float("inf")
    for alpha in (0.0, *_ALPHAS):
        by_I = inputs_I**alpha / weights_I ** (1 - alpha) if alpha else torch.ones_like(inputs_I)
        by_I = (by_I / by_I.log().mean().exp()).clamp(1e-3, 1e3)
        error = sum(_error(rows_NI, weights_N1, g.weight_OI, by_I, form) for g in group)
        if error < least:
            best, least = (alpha, by_I), error
    return best


def _error(
    rows_NI: torch.Tensor,
    weights_N1: torch.Tensor,
    weight_OI: torch.Tensor,
    by_I: torch.Tensor,
    form: LinearFormat,
) -> float:
    """Return the weighted squared error of the outputs, weights and inputs rounded."""
    smooth_NI, scaled_OI = rows_NI / by_I, weight_OI * by_I
    if form.activations is Activations.ROW:
        rounded_NI = round_rows(smooth_NI, form)
    elif form.activations is Activations.STATIC:
        seen = SeenInputs(False)
        seen.add(smooth_NI, weights_N1)
        scale = seen.find_scale(scaled_OI, form.code)
        rounded_NI = round_to_code(smooth_NI / scale, form.code) * scale
    else:
        rounded_NI = smooth_NI
    rounded_OI = torch.from_numpy(round_nearest(scaled_OI, form).dequantize())
    error_NO = rounded_NI @ rounded_OI.T - rows_NI @ weight_OI.T
    return float((error_NO * weights_N1).square().sum())


def _divide_rows(linear: GraphLinear, by_O: torch.Tensor) -> None:
    linear.weight_OI.div_(by_O[:, None])


def _divide_seen(seen: SeenInputs, by_I: torch.Tensor) -> None:
    seen.rows_NI = [rows_NI / by_I for rows_NI in seen.rows_NI]
    seen.largest = max(float(rows_NI.abs().max()) for rows_NI in seen.rows_NI)


def _grouped(x_I: torch.Tensor, linears: dict[str, GraphLinear], width: int) -> torch.Tensor:
    """Return [kv heads, query heads of each, width] of o_proj's inputs."""
    kv_heads = len(linears["v_proj"].weight_OI) // width
    return x_I.reshape(kv_heads, -1, width)


def _tied(x_I: torch.Tensor, linears: dict[str, GraphLinear], width: int) -> torch.Tensor:
    """Give query heads that read one head's values the same factor: their largest."""
    grouped = _grouped(x_I, linears, width)
    return grouped.amax(1, keepdim=True).expand_as(grouped).reshape(-1)


def _first_of_group(x_I: torch.Tensor, linears: dict[str, GraphLinear], width: int) -> torch.Tensor:
    return _grouped(x_I, linears, width)[:, 0].reshape(-1)
