"""This package owns the benchmark: how fast is this artifact, beside what else people run?

Start at `__main__.py` (the command), `worker.py` (one side, in its own process) and `measure.py`
(the rounds).
"""
