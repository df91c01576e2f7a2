"""This package owns the parity check: may this engine replace the reference?

Start at `__main__.py` (the command), `suite.py` (local tasks) and `verdict.py` (the decision).
"""
