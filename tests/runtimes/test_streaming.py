"""Tests of streaming.py, with a runtime small enough to count its calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from nvembed_deploy.errors import ArtifactError
from nvembed_deploy.runtimes.batching import BatchLimits
from nvembed_deploy.runtimes.streaming import Stream
from nvembed_deploy.text import Batch, Tokens


@dataclass
class SumRuntime:
    """Embeds a text as [sum of its ids, its length]."""

    name: str = "sum"
    device: str = "cpu"
    max_tokens: int = 64
    packs: bool = False
    workers: int = 1
    rows: list[int] = field(default_factory=list)

    def embed(self, batch: Batch) -> np.ndarray:
        self.rows.append(len(batch.input_ids_BS))
        kept_BS = batch.attention_mask_BS
        return np.stack(
            [(batch.input_ids_BS * kept_BS).sum(axis=1), kept_BS.sum(axis=1)], axis=1
        ).astype(np.float32)

    def close(self) -> None:
        """Nothing to free."""


def tokens_of(texts: list[str]) -> list[Tokens]:
    return [Tokens(ids=np.array([int(w) for w in t.split()]), num_masked=0) for t in texts]


def make_stream(runtime: SumRuntime, window_texts: int = 8192) -> Stream:
    return Stream(
        runtime=runtime,
        tokenize=tokens_of,
        pad_id=2,
        limits=BatchLimits(max_batch_tokens=30),
        width=2,
        window_texts=window_texts,
    )


def texts_and_rows(count: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 1000, size=rng.integers(1, 12)) for _ in range(count)]
    rows = [[text.sum(), len(text)] for text in ids]
    return [" ".join(map(str, text)) for text in ids], np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("window_texts", [1, 7, 64, 65, 1000])
def test_rows_come_in_the_order_of_the_texts_whatever_the_window(window_texts: int) -> None:
    texts, rows = texts_and_rows(65)
    windows = list(make_stream(SumRuntime(), window_texts).embed(texts, lambda _n: None))
    np.testing.assert_array_equal(np.concatenate(windows), rows)
    assert len(windows) == -(-65 // window_texts)


def test_no_texts_give_no_windows() -> None:
    assert list(make_stream(SumRuntime()).embed([], lambda _n: None)) == []


def test_equal_texts_are_computed_once_and_counted_all() -> None:
    runtime, done = SumRuntime(), []
    (rows,) = make_stream(runtime).embed(["1 2", "5", "1 2", "1 2"], done.append)
    np.testing.assert_array_equal(rows, [[3, 2], [5, 1], [3, 2], [3, 2]])
    assert sum(runtime.rows) == 2
    assert sum(done) == 4


def test_a_later_window_is_not_prepared_before_it_is_needed() -> None:
    asked: list[str] = []

    def tokenize(texts: list[str]) -> list[Tokens]:
        asked.extend(texts)
        return tokens_of(texts)

    stream = Stream(
        runtime=SumRuntime(),
        tokenize=tokenize,
        pad_id=2,
        limits=BatchLimits(),
        width=2,
        window_texts=1,
    )
    windows = stream.embed([str(i) for i in range(10)], lambda _n: None)
    next(windows)
    windows.close()
    assert len(asked) <= 2, "memory grows with the number of texts"


def test_a_value_that_is_not_finite_names_its_text() -> None:
    class BrokenRuntime(SumRuntime):
        def embed(self, batch: Batch) -> np.ndarray:
            rows = super().embed(batch)
            rows[rows[:, 0] == 13] = np.nan
            return rows

    texts = ["1", "2", "3", "4", "6", "7", "8", "13", "5"]
    with pytest.raises(ArtifactError, match="embedding of text 7 is not finite"):
        list(make_stream(BrokenRuntime(), 3).embed(texts, lambda _n: None))


def test_how_many_texts_are_cut_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def cut(texts: list[str]) -> list[Tokens]:
        return [replace(tokens, is_cut=len(tokens.ids) > 2) for tokens in tokens_of(texts)]

    stream = replace(make_stream(SumRuntime()), tokenize=cut)
    with caplog.at_level("INFO"):
        list(stream.embed(["1", "2 2", "3 3 3", "4 4 4", "4 4 4", "5 5 5 5"], lambda _n: None))
    assert caplog.messages == ["3 of 5 texts are cut to the most tokens"]


def test_an_error_in_tokenising_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(make_stream(SumRuntime(), 2).embed(["1", "2", "3", "x"], lambda _n: None))


@pytest.mark.parametrize(("read", "whole"), [(3, 0), (4, 4), (7, 4), (9, 8), (14, 12)])
def test_windows_read_whole_come_before_the_error_of_a_generator(read: int, whole: int) -> None:
    def failing() -> Iterator[str]:
        yield from (str(i) for i in range(read))
        raise OSError("the database went away")

    windows, rows = make_stream(SumRuntime(), 4).embed(failing(), lambda _n: None), []
    with pytest.raises(OSError, match="database"):
        rows += (row for window in windows for row in window[:, 0])
    assert rows == list(range(whole))


def test_an_endless_generator_is_read_two_windows_ahead() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(taken)

    windows = make_stream(SumRuntime(), 4).embed(endless(), lambda _n: None)
    for number in range(5):
        np.testing.assert_array_equal(next(windows)[:, 0], np.arange(4) + 4 * number + 1)
        assert taken <= 4 * (number + 3)
    windows.close()
