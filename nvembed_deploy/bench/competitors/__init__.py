"""This package owns the ways other people run the same model, each with the same weights.

They are written as their own documentation shows, not tuned and not hobbled; what each does is in
`docs/performance.md`.
"""
