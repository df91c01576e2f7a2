"""This file owns what a language model is asked when training examples are synthesised.

Two steps, as in arXiv 2401.00368, which NV-Embed-v2 follows: tasks are thought up, then examples of
each. The words are this project's own. Change VERSION with them: answers to other words are other
answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

VERSION = 1
Message = dict[str, str]

_SYSTEM = (
    "You write training data for a text embedding model. Answer with JSON only: no comment before "
    "or after it, no Markdown."
)


class Shape(StrEnum):
    """Which side of an example is long. NV-Embed-v2 took 40,000 examples of each."""

    SHORT_LONG = "short-long"
    LONG_SHORT = "long-short"
    SHORT_SHORT = "short-short"


@dataclass(frozen=True)
class Sides:
    """What query and positive of a shape are."""

    task_type: str
    """As training knows it: decides whether passages carry the instruction."""
    task: str
    query: str
    positive: str
    negative: str


SIDES = {
    Shape.SHORT_LONG: Sides(
        "retrieval",
        "a short query is matched with a long document: questions, keywords, claims or requests on "
        "one side; articles, manuals, reviews, reports or threads on the other",
        "a query of {short} words",
        "a document of {long} words that answers the query fully, and never quotes it",
        "a document of {long} words on the same subject, with many of the same terms, that does "
        "not answer the query",
    ),
    Shape.LONG_SHORT: Sides(
        "classification",
        "a long text is matched with a short one that names what it is: its subject, intent, "
        "sentiment, genre, severity, author's stance or the like",
        "a text of {long} words, as people really write it, that never names its own label",
        "the label that fits, in at most 8 words",
        "a label of the same kind that one could mistake for it but that is wrong",
    ),
    Shape.SHORT_SHORT: Sides(
        "retrieval",
        "a short text is matched with another short text that stands in some relation to it: "
        "sayings and their morals, symptoms and causes, products and uses, errors and remedies",
        "a text of {short} words",
        "a text of {short} words that stands in that relation to it, in other words",
        "a text of {short} words on the same subject that does not stand in that relation to it",
    ),
}

_SUBJECTS = (
    "medicine and care",
    "law and public administration",
    "software and its operation",
    "physics, chemistry and materials",
    "biology, farming and food",
    "history and archaeology",
    "personal finance and business",
    "schools and learning",
    "sport, games and leisure",
    "travel and transport",
    "art, music and film",
    "language and literature",
    "houses, tools and repair",
    "news and politics",
    "shops, customers and complaints",
    "engineering and manufacturing",
    "family, work and relationships",
    "weather, nature and environment",
)
_SHORT = ("3 to 6", "5 to 12", "10 to 20")
_LONG = ("60 to 100", "100 to 200", "200 to 350")
_READERS = ("anyone", "a student", "somebody at work", "a specialist", "somebody in a hurry")
_MANNERS = ("clear", "somewhat vague", "precise and technical", "colloquial", "indirect")


def task_messages(shape: Shape, count: int, key: str) -> list[Message]:
    """Ask for instructions of new tasks; `key` decides which subjects are suggested."""
    subjects = random.Random(key).sample(_SUBJECTS, 3)
    user = f"""Think of {count} tasks for a text embedding model in which {SIDES[shape].task}.

Write each as an instruction of one sentence that says what is given and what is to be found, like
"Given a recipe's name, retrieve its list of ingredients". Each must differ from the others in
subject and in kind, be specific, and need understanding rather than shared words. Take some from
these subjects: {"; ".join(subjects)}.

Answer with a JSON array of {count} strings."""
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]


def example_messages(shape: Shape, task: str, language: str, key: str) -> list[Message]:
    """Ask for one example of a task; `key` decides its length, reader and manner."""
    drawn, sides = random.Random(key), SIDES[shape]
    lengths = {"short": drawn.choice(_SHORT), "long": drawn.choice(_LONG)}
    user = f"""A text embedding model has this task: {task}

Write one training example as a JSON object with three strings:
"query": {sides.query.format(**lengths)};
"positive": {sides.positive.format(**lengths)};
"negative": {sides.negative.format(**lengths)}.

All three are in {language}, written for {drawn.choice(_READERS)}, in a {drawn.choice(_MANNERS)}
manner. Use real, concrete detail, no placeholders, and do not repeat the task. What is right must
be decided by meaning: the negative may share as many words with the query as the positive does."""
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]
