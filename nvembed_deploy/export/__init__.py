"""This package owns turning a checkpoint into an artifact; `pipeline.py` is its order of steps.

Use `python -m nvembed_deploy.export`, or `plan_export` and `run_export` of `pipeline`.
"""
