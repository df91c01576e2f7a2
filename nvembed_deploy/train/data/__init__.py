"""This package owns training data before training: built of raw sets, mined, or synthesised.

What it writes is what `train` reads: one JSON object a line, checked by `train/example.py`.
"""
