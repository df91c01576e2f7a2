"""This file owns reading a corpus: further passages that negatives may come from."""

from __future__ import annotations

from pathlib import Path

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.rows import Faults, read_rows
from nvembed_deploy.train.example import is_unicode


def read_corpus(path: Path, faults: Faults) -> list[str]:
    """Return the distinct passages of a JSONL file: `text`, after its `title` if it has one.

    Raises:
        InputError: the file cannot be read, or holds no passage.
    """
    texts: dict[str, None] = {}
    for place, row in read_rows(path, faults):
        text, title = row.get("text"), row.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str):
            faults.add(place, f"text is {text!r:.60}, expected a text")
        elif not text.strip():
            faults.add(place, "text is empty")
        elif not is_unicode(title + text):
            faults.add(place, "a text is no valid Unicode")
        else:
            texts[f"{title} {text}" if title.strip() else text] = None
    if not texts:
        raise InputError(f"corpus {path} holds no text", 'its rows need "text"')
    return list(texts)
