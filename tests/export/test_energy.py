"""Tests of nvembed_deploy/export/energy.py: half of the work, all of the sum."""

from __future__ import annotations

import pytest
import torch

from nvembed_deploy.export import energy
from nvembed_deploy.export.energy import add_energy, complete_energy


@pytest.mark.parametrize("panel", [3, 4, 7, 100])
def test_the_sum_is_that_of_all_tokens_whatever_the_panels(
    monkeypatch: pytest.MonkeyPatch, panel: int
) -> None:
    monkeypatch.setattr(energy, "_PANEL", panel)
    x_NI = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy_II = torch.zeros(8, 8, dtype=torch.float64)
    for batch_NI in x_NI.split(6):
        add_energy(energy_II, batch_NI)
    complete_energy(energy_II)
    torch.testing.assert_close(energy_II, x_NI.T @ x_NI)


def test_what_lies_above_the_diagonal_panels_is_not_added_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(energy, "_PANEL", 2)
    energy_II = torch.zeros(4, 4)
    add_energy(energy_II, torch.ones(5, 4))
    assert energy_II.tolist() == [[5, 5, 0, 0], [5, 5, 0, 0], [5, 5, 5, 5], [5, 5, 5, 5]]
