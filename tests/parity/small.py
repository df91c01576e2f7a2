"""A suite with one small task of every kind, in words that the tiny tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nvembed_deploy.parity.suite import KINDS
from nvembed_deploy.parity.verdict import LEAST_ITEMS

WORDS = ("the", "cat", "sat", "on", "a", "mat", "another", "text", "of", "many", "words")


def text(number: int) -> str:
    """Return a text that no other number gives."""
    picked = np.random.default_rng(number).choice(WORDS, 4 + number % 5)
    return " ".join(picked) + f" {number}"


def _rows(kind: str) -> dict[str, list[dict[str, Any]]]:
    if kind in {"retrieval", "reranking"}:
        tables = {
            "corpus": [{"_id": f"d{i}", "text": text(i)} for i in range(14)],
            "queries": [{"_id": f"q{i}", "text": text(i)[:12]} for i in range(LEAST_ITEMS)],
        }
        if kind == "reranking":
            tables["top_ranked"] = [
                {"query-id": f"q{i}", "corpus-ids": [f"d{j}" for j in range(i % 4, 14)]}
                for i in range(LEAST_ITEMS)
            ]
        return tables
    if kind in {"sts", "pair_classification"}:
        truth: dict[str, Any] = {"sts": "score", "pair_classification": "label"}
        rows = [
            {"sentence1": text(i), "sentence2": text(i + 9), truth[kind]: (i * 7) % 5 % 2}
            for i in range(LEAST_ITEMS)
        ]
        return {"pairs": rows}
    if kind == "classification":
        splits = ["train", "train", "test"]
        return {
            "labeled": [
                {"text": text(i), "label": "ab"[i % 2], "split": splits[i % 3]} for i in range(60)
            ]
        }
    if kind == "clustering":
        return {"data": [{"text": text(i), "label": "abc"[i % 3]} for i in range(24)]}
    return {
        "summaries": [
            {
                "text": text(i),
                "human_summaries": [text(i + 1), text(i + 2)],
                "machine_summaries": [text(i + j) for j in range(4)],
                "relevance": [1.0, 4.0, float(i), 3.0],
            }
            for i in range(5)
        ]
    }


def write_suite(folder: Path, kinds: tuple[str, ...] = tuple(KINDS)) -> Path:
    """Write one task of each kind."""
    for kind in kinds:
        task = folder / f"small_{kind}"
        task.mkdir(parents=True)
        described = {"name": f"small_{kind}", "type": kind, "instruction": f"do {kind}"}
        (task / "task.json").write_text(json.dumps(described))
        for stem, rows in _rows(kind).items():
            (task / f"{stem}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        if kind in {"retrieval", "reranking"}:
            lines = [
                f"q{i}\td{j % 14}\t{1 + j % 2}" for i in range(LEAST_ITEMS) for j in (i, i + 3)
            ]
            (task / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    return folder
