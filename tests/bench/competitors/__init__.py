"""Tests of nvembed_deploy/bench/competitors/."""
