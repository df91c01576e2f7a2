"""This package owns the model without padding: a batch of texts is one row of tokens.

The same function as `nvembed.NVEmbed` with the folded pooler (tests compare them), for serving:
no padded token is computed, constants are folded, and the last layer is computed only for the
tokens that are pooled. Shapes: T tokens of all texts, R rows that are pooled, B texts, D hidden,
H heads, K head width.
"""
