"""This file owns the competitors' text side: transformers' fast tokenizer, one padded batch.

BOS and EOS are written as text and the prefix is masked by its number of tokens, as NV-Embed's own
`encode` does. Legend: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvembed_deploy.bench.competitors.weights import TOKENIZER, read_spec

Features = dict[str, NDArray[np.int64]]
"""input_ids, attention_mask and pool_mask, int64 [B, S]."""


class Tokenization:
    """A fast tokenizer with the model's text rules."""

    def __init__(self, folder: Path) -> None:
        """Read it from the folder that `weights.prepare` wrote."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        self.spec = read_spec(folder).text
        raw = Tokenizer.from_file(str(folder / TOKENIZER))
        names = {key: raw.id_to_token(getattr(self.spec, f"{key}_id")) for key in ("bos", "eos")}
        self._bos, self._eos = names["bos"], names["eos"]
        fast_tokenizer: Any = PreTrainedTokenizerFast  # transformers leaves it untyped
        self._tokenizer = fast_tokenizer(
            tokenizer_object=raw,
            pad_token=raw.id_to_token(self.spec.pad_id),
            padding_side="right",
            model_max_length=self.spec.max_tokens,
        )

    def prefix(self, instruction: str) -> str:
        """Return what is written before each text."""
        if not instruction:
            return ""
        return self.spec.instruction_template.format(instruction=instruction)

    def features(self, texts: Sequence[str], prefix: str = "") -> Features:
        """Return one batch, padded to its longest text."""
        batch = self._tokenizer(
            [f"{self._bos}{prefix}{text}{self._eos}" for text in texts],
            add_special_tokens=False,
            padding=True,
            truncation=True,
            return_tensors="np",
            return_token_type_ids=False,
        )
        found: Features = {k: batch[k].astype(np.int64) for k in ("input_ids", "attention_mask")}
        pool_mask_BS = found["attention_mask"].copy()
        if prefix:
            pool_mask_BS[:, : len(self._tokenizer.tokenize(prefix))] = 0
        return found | {"pool_mask": pool_mask_BS}

    def lengths(self, texts: list[str], instruction: str) -> list[int]:
        """Return each text's tokens; `Subject.tokenize`, in batches of 32 as the sides do it."""
        counts: list[int] = []
        for start in range(0, len(texts), BATCH):
            batch = self.features(texts[start : start + BATCH], self.prefix(instruction))
            counts += batch["attention_mask"].sum(1).tolist()
        return counts


BATCH = 32
"""sentence-transformers' default, and what the others get."""
