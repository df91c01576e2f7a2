"""This file owns real texts of many lengths that every Python brings along: its documentation."""

from __future__ import annotations

import importlib
import inspect

MODULES = (
    "argparse", "ast", "asyncio", "calendar", "collections", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "email.message", "fractions", "functools", "heapq", "http.client",
    "inspect", "ipaddress", "itertools", "json", "logging", "multiprocessing.pool", "optparse",
    "os", "pathlib", "pickle", "random", "re", "shutil", "sqlite3", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "turtle", "typing", "unittest",
    "urllib.parse", "uuid", "xml.dom.minidom", "zipfile",
)  # fmt: skip


def documentation(count: int) -> list[str]:
    """Return `count` different texts, from a few characters to about a thousand tokens."""
    texts: dict[str, None] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for _, member in [(name, module), *sorted(inspect.getmembers(module))]:
            text = inspect.getdoc(member) if callable(member) or member is module else None
            if text:
                texts[text[:4000]] = None
    by_length = sorted(texts, key=lambda text: (len(text), text))
    step = (len(by_length) - 1) / (count - 1)
    return [by_length[round(i * step)] for i in range(count)]
