"""This package owns the demo: `make demo`."""
