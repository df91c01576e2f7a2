"""This file owns writing a graph's weights as the exporter does, for tests of single steps."""

from __future__ import annotations

from pathlib import Path

from nvembed_deploy.export.graph import GraphOptions, author_graph
from nvembed_deploy.export.linear_weights import open_linears
from nvembed_deploy.export.nearest import NearestQuantizer
from nvembed_deploy.export.rotation import RotatedWeights
from nvembed_deploy.export.weight_file import WeightFile, write_weights
from nvembed_deploy.model.weights import Weights
from nvembed_deploy.spec import PoolerForm


def weight_file(weights: Weights, options: GraphOptions, folder: Path) -> WeightFile:
    """Write the weight file of `options`' graph; quantised linears to the nearest code."""
    entries = author_graph(weights.spec, options).weights
    weights = RotatedWeights(weights, kernels=options.kernels) if options.rotates else weights
    with open_linears(weights, is_folded=options.pooler_form is PoolerForm.FOLDED) as linears:
        quantizer = NearestQuantizer(linears, options.formats)
        return write_weights(folder / "model.onnx_data", entries, linears, quantizer)
