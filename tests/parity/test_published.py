"""Tests of nvembed_deploy/parity/published.py: the averages people quote follow from the data."""

from __future__ import annotations

import mteb
import numpy as np
import pytest

from nvembed_deploy.parity.published import MODELS, compare, published_scores


@pytest.mark.parametrize(("model", "average"), [("NV-Embed-v1", 69.33), ("NV-Embed-v2", 72.32)])
def test_56_tasks_average_to_the_published_figure(model: str, average: float) -> None:
    cards = [score.card for score in published_scores(model).values() if score.card is not None]
    assert len(cards) == 56
    assert np.mean(cards) == pytest.approx(average, abs=0.006)


def test_every_task_is_one_of_mtebs() -> None:
    for model in MODELS:
        for name in published_scores(model):
            if name not in {"CQADupstackRetrieval"}:  # an average of twelve
                assert mteb.get_task(name).metadata.name == name


def test_a_run_is_compared_with_card_and_rerun() -> None:
    lines = compare({"NFCorpus": 0.45, "mine": 0.9}, "NV-Embed-v2")
    assert lines == [
        f"{'NFCorpus':<32}  45.00  card 45.17 (-0.17), mteb's rerun 44.96 (+0.04)",
    ]
    assert "none of the tasks" in compare({"mine": 0.9}, "NV-Embed-v2")[0]
