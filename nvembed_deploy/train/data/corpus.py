"""This file owns reading a corpus: further passages that negatives may come from."""

from __future__ import annotations

from pathlib import Path

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.rows import Faults, read_rows, text_fault


def read_corpus(path: Path, faults: Faults) -> list[str]:
    """Return the distinct passages of a JSONL file: `text`, after its `title` if it has one.

    Raises:
        InputError: the file cannot be read, or holds no passage.
    """
    texts: dict[str, None] = {}
    for place, row in read_rows(path, faults):
        text, title = row.get("text"), row.get("title") or ""
        has_title = not isinstance(title, str) or bool(title.strip())
        fault = text_fault("text", text) or (text_fault("title", title) if has_title else None)
        if fault is not None:
            faults.add(place, fault)
        else:
            texts[f"{title} {text}" if has_title else str(text)] = None
    if not texts:
        raise InputError(f"corpus {path} holds no text", 'its rows need "text"')
    return list(texts)
