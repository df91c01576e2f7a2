"""Tests of nvembed_deploy/parity/."""
