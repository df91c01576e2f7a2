"""This file owns NV-Embed-v2's instructions where they differ from the task's own in mteb.

Source: the model's published instruction table; for all other tasks mteb's registry says what
NV-Embed was measured with.
"""

from __future__ import annotations

V2_INSTRUCTIONS = {
    "ArguAna": "Given a claim, retrieve documents that support or refute the claim",
    "FiQA2018": "Given a financial question, retrieve relevant passages that answer the query",
    "NFCorpus": "Given a question, retrieve relevant documents that answer the question",
    "NQ": "Given a question, retrieve passages that answer the question",
    "Touche2020": "Given a question, retrieve passages that answer the question",
    "Touche2020Retrieval.v3": "Given a question, retrieve passages that answer the question",
    "TRECCOVID": "Given a query on COVID-19, retrieve documents that answer the query",
    **dict.fromkeys(
        (
            "BIOSSES",
            "SICK-R",
            "STS12",
            "STS13",
            "STS14",
            "STS15",
            "STS16",
            "STS17",
            "STS22",
            "STSBenchmark",
        ),
        "Retrieve semantically similar text",
    ),
}
