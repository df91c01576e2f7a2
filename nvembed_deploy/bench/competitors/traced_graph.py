"""This file owns ONNX Runtime on torch.onnx.export's graph: float32, batches of 32 by length.

Legend: N texts, D hidden.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort  # noqa: TID253 - only the worker of such a side imports this file
from numpy.typing import NDArray

from nvembed_deploy.bench.competitors.features import BATCH, Tokenization
from nvembed_deploy.bench.competitors.weights import TRACED
from nvembed_deploy.bench.side import Side
from nvembed_deploy.bench.subject import Subject

_CUDA = "CUDAExecutionProvider"


def open_traced(side: Side) -> Subject:
    """Open a session with ONNX Runtime's own defaults."""
    tokenization = Tokenization(Path(side.path))
    options = ort.SessionOptions()
    if side.threads is not None:
        options.intra_op_num_threads = side.threads
    is_cpu = side.device == "cpu" or _CUDA not in ort.get_available_providers()
    index = (side.device or "").partition(",")[0].partition(":")[2] or "0"
    provider = "CPUExecutionProvider" if is_cpu else (_CUDA, {"device_id": index})
    if not is_cpu:
        from nvembed_deploy.runtimes.onnx_tensorrt import load_gpu_libraries

        load_gpu_libraries(tensorrt=False)  # ours has them too; without, it runs on the processor
    session = ort.InferenceSession(str(Path(side.path) / TRACED), options, providers=[provider])

    def encode(texts: list[str], instruction: str) -> NDArray[np.float32]:
        prefix = tokenization.prefix(instruction)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            features = tokenization.features([texts[i] for i in chosen], prefix)
            (rows_BD,) = session.run(None, features)
            for index, row_D in zip(chosen, rows_BD, strict=True):
                rows[index] = row_D
        return np.stack(rows)

    device = f"cuda:{index}" if session.get_providers()[0] == _CUDA else "cpu"
    facts = {"runtime": "onnxruntime", "device": device, "dtype": "fp32"}
    return Subject(encode, tokenization.lengths, facts)
