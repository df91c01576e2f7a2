"""Tests of nvembed_deploy/train/data."""
