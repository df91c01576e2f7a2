"""Tiny models are trained on the processor, and slower on several threads than on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.train import pairs


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="package")
def on_the_processor() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pairs.ON_PROCESSOR.items():
            patch.setenv(name, value)
        yield
