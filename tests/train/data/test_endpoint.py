"""Tests of nvembed_deploy/train/data/endpoint.py: what may pass is tried again, nothing else."""

from __future__ import annotations

import threading
import time

import pytest

from nvembed_deploy.errors import InputError
from nvembed_deploy.train.data.endpoint import ClosedError, Endpoint, _wait_seconds
from tests.train.data.stub import Fault, Stub, serve

HELLO = [{"role": "user", "content": "hello"}]


def endpoint(url: str, **options: object) -> Endpoint:
    return Endpoint(url, "m", **{"first_wait_seconds": 0.001, "tries": 4, **options})


def until(number: int, status: int, body: bytes = b"later") -> Fault:
    """Fail with a status at every request before that number."""
    return lambda _, at: (status, body) if at < number else None


def test_the_request_is_what_such_servers_take() -> None:
    with serve(Stub(reply=lambda prompt, _: prompt + "!")) as stub:
        chat = endpoint(stub.url + "/", key="secret", temperature=0.5, max_tokens=7)
        assert chat.answer(HELLO) == "hello!"
        endpoint(stub.url).answer(HELLO)
    assert stub.requests[0] == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0.5,
        "max_tokens": 7,
    }
    assert stub.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in stub.headers[1]
    assert "secret" not in repr(chat)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, b""),
        (500, b""),
        (503, b"loading"),
        (0, b""),
        (200, b"{}"),
        (200, b"<html>"),
        (200, b"[" * 10**5),
    ],
    ids=["busy", "broken", "starting", "hung up", "no answer", "no JSON", "too deep"],
)
def test_what_may_pass_is_tried_again(status: int, body: bytes) -> None:
    with serve(Stub(until(4, status, body), lambda *_: "fine")) as stub:
        assert endpoint(stub.url).answer(HELLO) == "fine"
        assert len(stub.requests) == 4
        stub.fault = lambda *_: (status, body)
        with pytest.raises(InputError, match="failed 4 times, last with: "):
            endpoint(stub.url).answer(HELLO)
        assert len(stub.requests) == 8


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_will_not_pass_is_an_error_at_once(status: int) -> None:
    with serve(Stub(until(9, status, b"unknown model"))) as stub:
        with pytest.raises(InputError, match=f"refuses model 'm': {status} .*unknown model"):
            endpoint(stub.url, key="secret").answer(HELLO)
        assert len(stub.requests) == 1


def test_a_server_that_is_not_there_and_one_that_is_slow_are_tried_again() -> None:
    slow = pytest.raises(InputError, match="failed 2 times, last with: TimeoutError")
    with serve(Stub(lambda *_: time.sleep(0.5))) as stub, slow:
        endpoint(stub.url, timeout_seconds=0.05, tries=2).answer(HELLO)
    with pytest.raises(InputError, match="failed 2 times, last with: URLError"):
        endpoint(stub.url, tries=2).answer(HELLO)


def test_each_wait_is_longer_and_the_servers_wish_counts() -> None:
    waits: list[float] = []

    class Recorder(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    with serve(Stub(until(9, 503))) as stub, pytest.raises(InputError):
        endpoint(stub.url, first_wait_seconds=1.0, closed=Recorder()).answer(HELLO)
    ranges = zip(waits, (1, 2, 4), strict=True)
    assert all(top / 2 <= wait <= top for wait, top in ranges)
    assert [_wait_seconds(header) for header in ("7", "1e9", None, "Mon, 1 Jan")] == [7, 60, 0, 0]


URLS = (
    "localhost:8000",
    "ftp://localhost/v1",
    "http://",
    "http://[bad/v1",
    "http://host:99999/v1",
    "http://host/v 1",
    "http://h\u00f6st/v1",
    "https://user:secret@host/v1",
    "https://host/v1?key=secret",
)


@pytest.mark.parametrize("url", URLS)
def test_an_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no http") as caught:
        Endpoint(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_goes_nowhere_else(status: int) -> None:
    with serve(Stub()) as other, serve(Stub(until(9, status))) as stub:
        stub.location = other.url
        with pytest.raises(InputError, match=f"refuses model 'm': {status} .* to {other.url}"):
            endpoint(stub.url, key="secret").answer(HELLO)
        assert (len(stub.requests), other.paths) == (1, [])


@pytest.mark.parametrize(("status", "tries"), [(401, 4), (500, 1), (200, 1)])
def test_a_key_that_a_server_repeats_is_not_shown(status: int, tries: int) -> None:
    shown = pytest.raises(InputError, match=r"wrong key: \*\*\*!")
    with serve(Stub(until(9, status, b"wrong key: s3cret!"))) as stub, shown:
        endpoint(stub.url, key="s3cret", tries=tries).answer(HELLO)


def test_closing_wakes_who_waits_and_asks_nothing_more() -> None:
    with serve(Stub(until(9, 503))) as stub:
        chat = endpoint(stub.url, first_wait_seconds=60.0)
        before = time.monotonic()
        threading.Timer(0.1, chat.close).start()
        with pytest.raises(ClosedError):
            chat.answer(HELLO)
        with pytest.raises(ClosedError):
            chat.answer(HELLO)
        assert time.monotonic() - before < 10
        assert len(stub.requests) == 1
