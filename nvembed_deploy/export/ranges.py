"""This file owns the ranges of linears' inputs: what was seen of each, and where one range clips.

The range that keeps the largest value seen rounds all others coarsely for its sake. The one taken
is the one whose error in the linear's output is least, over ranges down to 1/64 of that, as if the
errors of different inputs were independent. Shapes: B batch, S sequence, N tokens, I inputs,
O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from nvembed_deploy.export.formats import Code
from nvembed_deploy.export.graph_linear import first_of
from nvembed_deploy.export.quantize import SMALLEST_SCALE, round_to_code

_ROWS_OF_A_BATCH, _LARGEST_OF_A_BATCH = 32, 8
"""Tokens kept of each batch, evenly spread, which stand for all, and those with the largest values,
which decide whether to clip: 640 of 256 texts, and 37 MB of the widest input."""
_FRACTIONS = tuple(2 ** (-step / 8) for step in range(49))
_ADD_TO_STATES = ("o_proj", "down_proj")


@dataclass
class SeenInputs:
    """What was seen of a linear's input: the largest value, some tokens, and how they count."""

    is_sampled: bool = True
    """Whether some tokens of each batch stand for all."""
    largest: float = 0.0
    rows_NI: list[torch.Tensor] = field(default_factory=list)
    weights_N1: list[torch.Tensor] = field(default_factory=list)

    def add(self, x_NI: torch.Tensor, weights_N1: torch.Tensor) -> None:
        """Add the inputs of a batch; an error in token n counts `weights_N1[n]` times."""
        largest_N = x_NI.abs().amax(-1)
        self.largest = max(self.largest, float(largest_N.max()))
        step = max(1, len(x_NI) // _ROWS_OF_A_BATCH) if self.is_sampled else 1
        if step == 1:
            self.rows_NI.append(x_NI.clone())
            self.weights_N1.append(weights_N1.clone())
            return
        top = largest_N.topk(_LARGEST_OF_A_BATCH).indices
        self.rows_NI += [x_NI[::step].clone(), x_NI[top]]
        # Errors are squared: a root of how many tokens a row stands for.
        self.weights_N1 += [weights_N1[::step] * step**0.5, weights_N1[top]]

    def find_scale(self, weight_OI: torch.Tensor, code: Code) -> float:
        """Return the scale, a float16 value, with the least error in the linear's output."""
        rows_NI, weights_N1 = torch.cat(self.rows_NI), torch.cat(self.weights_N1)
        counts_I = weight_OI.norm(dim=0).square()
        best, least = 0.0, float("inf")
        for fraction in _FRACTIONS:
            scale = _storable(self.largest * fraction / code.greatest)
            error_NI = round_to_code(rows_NI / scale, code).mul_(scale).sub_(rows_NI)
            error = float(error_NI.mul_(weights_N1).square_().sum(0) @ counts_I)
            if error < least:
                best, least = scale, error
        return best

    def worst_token(self, weight_OI: torch.Tensor, code: Code) -> float:
        """Return the squared error of that range in the output, by the token it harms most.

        It is relative to the token's own output: 1 is a token of which nothing is left.
        """
        scale, counts_I = self.find_scale(weight_OI, code), weight_OI.norm(dim=0).square()
        worst = 0.0
        for rows_NI in self.rows_NI:
            error_NI = round_to_code(rows_NI / scale, code).mul_(scale).sub_(rows_NI).square_()
            whole_N = (rows_NI.square() @ counts_I).clamp_(min=torch.finfo(torch.float32).tiny)
            worst = max(worst, float((error_NI @ counts_I / whole_N).max()))
        return worst


@dataclass
class InputObserver:
    """Sees what goes into the linears of a block; see `graph_linear.Observer`."""

    seen: dict[str, SeenInputs] = field(default_factory=dict)
    """By the first of the linears that share an input."""
    outputs: dict[str, float] = field(default_factory=dict)
    """The largest absolute output of each linear."""
    is_sampled: bool = True
    token_weights_BS1: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def weigh(self, token_weights_BS1: torch.Tensor) -> None:
        """Take how much the tokens of the next batch count."""
        self.token_weights_BS1 = token_weights_BS1

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add a batch of inputs [B, S, I], or of pooled features [B, I], of a linear."""
        # Per token first: copies of what the pooler's widest linear gives would be gigabytes.
        largest = torch.maximum(y.amax(-1), -y.amin(-1))
        weights_N1 = torch.ones(len(x), 1, device=x.device)
        if x.dim() == self.token_weights_BS1.dim():
            weights_BS1 = _alike(self.token_weights_BS1 > 0)
            if name.endswith(_ADD_TO_STATES):
                weights_BS1 *= self.token_weights_BS1
            kept = weights_BS1[..., 0] > 0
            x, largest, weights_N1 = x[kept], largest[kept], weights_BS1[kept]
        self.outputs[name] = max(self.outputs.get(name, 0.0), float(largest.max()))
        if first_of(name) == name:
            self.see(name, x, weights_N1)

    def see(self, name: str, x_NI: torch.Tensor, weights_N1: torch.Tensor) -> None:
        """Take the tokens that are there, without padding; an error in one counts so much."""
        self.seen.setdefault(name, SeenInputs(self.is_sampled)).add(x_NI, weights_N1)


def _alike(kept_BS1: torch.Tensor) -> torch.Tensor:
    """Return weights [B, S, 1] by which the squared errors of each text's tokens add up to a mean.

    An embedding is a mean of tokens: of 100 one counts a hundredth of what it does where it is all.
    """
    return kept_BS1 / kept_BS1.sum(1, keepdim=True).clamp(min=1).sqrt()


def _storable(scale: float) -> float:
    return float(np.float16(max(scale, SMALLEST_SCALE)))
