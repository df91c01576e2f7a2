"""This file owns synthesis: tasks are thought up by a language model, then examples of each.

Every request has a name that decides its words, and every result is kept under that name: a run
that was killed asks only what is not answered yet. Replies of no use are not kept: a later run,
perhaps with longer replies, asks for them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.prompts import (
    VERSION,
    Message,
    Shape,
    example_messages,
    task_messages,
)
from nvembed_deploy.train.data.replies import read_example, read_tasks
from nvembed_deploy.train.data.reply_log import ReplyLog
from nvembed_deploy.train.data.rows import Row
from nvembed_deploy.train.data.threads import in_threads
from nvembed_deploy.train.data.words import normal

TASKS_A_REQUEST = 20
_ATTEMPTS = 3
"""A reply that is of no use is asked for again, in other words."""
_ROUNDS = 5
"""Of thinking up tasks; models repeat themselves."""

Ask = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class Order:
    """What is to be made."""

    tasks: int
    """Of all shapes together."""
    examples_a_task: int = 2
    language: str = "English"
    seed: int = 0
    concurrency: int = 8

    def tasks_of(self, shape: Shape) -> int:
        """Return how many tasks a shape has: equal parts, the first ones take what is left."""
        shapes = list(Shape)
        return self.tasks // len(shapes) + (shapes.index(shape) < self.tasks % len(shapes))


@dataclass(frozen=True)
class Request:
    """A question with a name, and how its reply is read (a text says why it is of no use)."""

    name: str
    messages: Callable[[str], list[Message]]
    """Takes a key that decides the words."""
    read: Callable[[str], Any]


class Synthesis:
    """Carries out an order and keeps every result in a folder."""

    def __init__(self, ask: Ask, order: Order, log: ReplyLog) -> None:
        """Go on from what the log holds."""
        self._ask = ask
        self._order = order
        self._log = log
        self.faults: Counter[str] = Counter()
        """Replies of no use, by reason."""
        self.repeated = 0
        """Examples left out because their query or positive occurred before."""

    def run(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[Row]:
        """Ask for tasks and examples, then yield the examples in the order of their requests.

        `advance` is called with the number of examples that are settled since the last call.

        Raises:
            InputError: the endpoint fails, or nothing of use was made.
        """
        requests = [
            request
            for shape in Shape
            for task in self._tasks(shape)
            for request in self._example_requests(shape, task)
        ]
        self._settle(requests, advance)
        rows = (self._log.results.get(request.name) for request in requests)
        kept = list(self._distinct(row for row in rows if row is not None))
        if not kept:
            found = f"{len(requests)} requests gave no example" if requests else "no task was found"
            reasons = ", ".join(f"{why} ({n})" for why, n in self.faults.most_common())
            raise InputError(
                f"{found}; replies of no use: {reasons}",
                "try a larger model, or more --max-tokens",
            )
        yield from kept

    def _tasks(self, shape: Shape) -> list[str]:
        """Return distinct tasks, as many as ordered unless the model runs out of them.

        Those that earlier runs have examples of stay, even if requests for tasks that were of no
        use then give some now.
        """
        wanted = self._order.tasks_of(shape)
        unanswered = (n for n in count() if _name(shape, n) not in self._log.results)
        for _ in range(_ROUNDS):
            missing = wanted - len(self._known_tasks(shape))
            if missing <= 0:
                break
            numbers = islice(unanswered, -(-missing // TASKS_A_REQUEST))
            self._settle([self._task_request(shape, number) for number in numbers])
        tasks = self._known_tasks(shape)
        begun = [task for task in tasks if self._has_example(shape, task)]
        kept = set(list(dict.fromkeys([*begun, *tasks]))[:wanted])
        return [task for task in tasks if task in kept]

    def _known_tasks(self, shape: Shape) -> list[str]:
        """Return the distinct tasks of the log, in the order of their requests."""
        prefix = _name(shape, "")
        names = [name for name in self._log.results if name.startswith(prefix)]
        tasks: dict[str, str] = {}
        for name in sorted(names, key=lambda name: int(name.removeprefix(prefix))):
            for task in self._log.results[name]:
                tasks.setdefault(normal(task), task)
        return list(tasks.values())

    def _has_example(self, shape: Shape, task: str) -> bool:
        return any(r.name in self._log.results for r in self._example_requests(shape, task))

    def _task_request(self, shape: Shape, number: int) -> Request:
        return Request(
            _name(shape, number),
            lambda key: task_messages(shape, TASKS_A_REQUEST, key),
            read_tasks,
        )

    def _example_requests(self, shape: Shape, task: str) -> list[Request]:
        language = self._order.language
        return [
            Request(
                f"example {shape} {number} {task}",
                lambda key: example_messages(shape, task, language, key),
                lambda reply: read_example(reply, shape, task),
            )
            for number in range(self._order.examples_a_task)
        ]

    def _settle(
        self, requests: Sequence[Request], advance: Callable[[int], None] = lambda _: None
    ) -> None:
        """Ask what the log does not know, several at a time."""
        open_requests = [r for r in requests if r.name not in self._log.results]
        advance(len(requests) - len(open_requests))
        for faults in in_threads(self._answer, open_requests, self._order.concurrency):
            self.faults.update(faults)
            advance(1)

    def _answer(self, request: Request) -> list[str]:
        """Keep the result of a request, and return the faults of replies that were of no use.

        It is kept before the thread takes up another, so a killed run loses only what is under way.
        """
        faults: list[str] = []
        for attempt in range(_ATTEMPTS):
            key = f"{self._order.seed} {request.name} {attempt}"
            result = request.read(self._ask(request.messages(key)))
            if not isinstance(result, str):
                self._log.add(request.name, result)
                return faults
            faults.append(result)
        return faults

    def _distinct(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield rows whose query is new, and whose positive is, unless it is a label."""
        seen: set[str] = set()
        for row in rows:
            sides = [row["query"]]
            if row["task_type"] != "classification":
                sides.append(row["positive"])
            if seen & {normal(text) for text in sides}:
                self.repeated += 1
                continue
            seen.update(normal(text) for text in sides)
            yield row


def _name(shape: Shape, number: object) -> str:
    """Return what a request for tasks is called."""
    return f"tasks {shape} {number}"


def open_log(folder: Path, order: Order, model: str) -> ReplyLog:
    """Open the log of an order; only more tasks or examples may be asked for later.

    Raises:
        InputError: the folder holds another order, or another run writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": model,
        "seed": order.seed,
        "language": order.language,
        "prompts": VERSION,
    }
    return ReplyLog(folder / "replies.jsonl", settings)
