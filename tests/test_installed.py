"""Tests of nvembed_deploy/installed.py."""

from __future__ import annotations

from importlib import metadata

from nvembed_deploy.installed import installed


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert installed(["numpy", "no-such-package"]) == {"numpy": metadata.version("numpy")}
