"""This file owns what is made of a language model's reply: tasks, an example, or why neither."""

from __future__ import annotations

import json
import re
from typing import Any

from nvembed_deploy.train.data.prompts import SIDES, Shape
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.data.words import normal, words
from nvembed_deploy.train.example import fault_of, is_unicode

_THOUGHTS = re.compile(r"<think>.*?</think>", re.S)
_OPENING = re.compile(r"[\[{]")
_TASK_WORDS = (4, 60)
_LABEL_WORDS = 20
_PLACEHOLDER = re.compile(
    r"\[(?:insert|your|name|text)\b|<(?:query|positive|document)>|lorem ipsum", re.I
)


def read_tasks(reply: str) -> list[str] | str:
    """Return the instructions in a reply, without a full stop; a text says why there are none."""
    found = _json(reply)
    if isinstance(found, dict) and len(found) == 1:  # {"tasks": [...]}
        (found,) = found.values()
    if not isinstance(found, list):
        return "no JSON array"
    texts = [" ".join(text.split()).rstrip(".") for text in found if isinstance(text, str)]
    least, most = _TASK_WORDS
    fitting = [text for text in texts if least <= len(text.split()) <= most]
    tasks = [text for text in fitting if is_unicode(text) and not _fault(text)]
    return tasks or "no task in the array"


def read_example(reply: str, shape: Shape, task: str) -> Row | str:
    """Return the example in a reply, as training reads it; a text says what is wrong with it."""
    found = _json(reply)
    if isinstance(found, list) and len(found) == 1:
        (found,) = found
    if not isinstance(found, dict):
        return "no JSON object"
    texts = [found.get(key) for key in ("query", "positive", "negative")]
    for key, text in zip(("query", "positive", "negative"), texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"no text for {key}"
    query, positive, negative = (str(text).strip() for text in texts)
    row = {
        "task_type": SIDES[shape].task_type,
        "instruction": task,
        "query": query,
        "positive": positive,
        "negatives": [negative],
        "source": f"synthetic-{shape}",
    }
    return _mistake(row, shape) or row


def _mistake(row: Row, shape: Shape) -> str | None:
    texts = [row["query"], row["positive"], *row["negatives"]]
    if len({normal(text) for text in texts}) < len(texts):
        return "two of its texts are the same"
    if any(_fault(text) for text in texts):
        return "a placeholder in a text"
    if normal(row["instruction"]) in {normal(text) for text in texts}:
        return "a text repeats the task"
    query, positive = (len(words(row[key])) for key in ("query", "positive"))
    if shape is Shape.SHORT_LONG and positive <= query:
        return "the document is not longer than the query"
    if shape is Shape.LONG_SHORT and (
        query <= positive or len(row["positive"].split()) > _LABEL_WORDS
    ):
        return "the label is not shorter than the text"
    return fault_of(row)


def _fault(text: str) -> bool:
    return bool(_PLACEHOLDER.search(text))


def _json(reply: str) -> Any:  # noqa: ANN401 - JSON
    """Return the first JSON array or object in a reply, whatever stands around it; None if none."""
    text = _THOUGHTS.sub("", reply)
    decoder = json.JSONDecoder(strict=False)  # models write line breaks within strings
    for opening in _OPENING.finditer(text):
        try:
            return decoder.raw_decode(text, opening.start())[0]
        except (ValueError, RecursionError):
            continue
    return None
