"""This file owns how a text becomes token ids, masks and a batch (numpy and `tokenizers` only)."""
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import tokenizers
from nvembed_deploy.spec import TextSpec

@dataclass(frozen=True)
class Tokens:
    ids: np.ndarray
    num_masked: int

@dataclass(frozen=True)
class Batch:
    input_ids_BS: np.ndarray
    attention_mask_BS: np.ndarray
    pool_mask_BS: np.ndarray

def collate(tokens, pad_id, length=None):
    n = length or max(len(t.ids) for t in tokens)
    ids = np.full((len(tokens), n), pad_id, np.int64); att = np.zeros_like(ids); pool = np.zeros_like(ids)
    for i, t in enumerate(tokens):
        s = len(t.ids); ids[i,:s]=t.ids; att[i,:s]=1; pool[i,t.num_masked:s]=1
    return Batch(ids, att, pool)

class Tokenizer:
    def __init__(self, tok, spec): self._t, self.spec = tok, spec
    @classmethod
    def load(cls, path, spec):
        t = tokenizers.Tokenizer.from_file(str(path)); t.no_padding(); t.no_truncation(); return cls(t, spec)
    def tokenize(self, texts, instruction="", prompt=None, max_tokens=None):
        limit = max_tokens or self.spec.max_tokens
        prefix = prompt or (self.spec.instruction_template.format(instruction=instruction) if instruction else "")
        k = len(self._t.encode(prefix, add_special_tokens=False).ids) if prefix else 0
        out = []
        for e in self._t.encode_batch([prefix + t for t in texts], add_special_tokens=False):
            ids = [self.spec.bos_id, *e.ids][: limit - 1] + [self.spec.eos_id]
            out.append(Tokens(np.array(ids, np.int64), k))
        return out
