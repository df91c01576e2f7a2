"""This package owns the model: its weights by name (numpy) and its torch modules (the oracle).

`weights`, `adapter`, `fold` and `assemble` need no torch; `backbone`, `pooler` and `nvembed` are
torch modules. Nothing is imported here, so that numpy users stay free of torch.
"""
