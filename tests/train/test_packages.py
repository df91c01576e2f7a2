"""Tests of nvembed_deploy/train/packages.py: what is missing is named, with its extra."""

from __future__ import annotations

import pytest

from nvembed_deploy.errors import MissingPackageError
from nvembed_deploy.train.packages import need


def test_all_packages_that_are_missing_are_named_with_their_extra() -> None:
    with pytest.raises(MissingPackageError) as caught:
        need("counting", "json", "not_there", "nor_there")
    assert caught.value.problem == "counting needs not_there, nor_there"
    assert caught.value.fix == "pip install 'nvembed-deploy[train]'"


def test_nothing_is_said_where_all_are_there() -> None:
    need("counting", "json")
