"""This package owns training: a recipe and text pairs to a checkpoint that export takes as it is.

Start at `__main__.py` (the command), `recipe.py` (what can be chosen) and `loop.py` (the steps).
"""
