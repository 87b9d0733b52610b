"""The synchronous client."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from serving.client import calls, publishing
from serving.client.address import Address
from serving.client.calls import Call
from serving.client.errors import ClientError
from serving.client.methods import named_after
from serving.client.publishing import Flow
from serving.client.retries import STANDARD, Retries
from serving.client.sending import Sending
from serving.client.streams import TextStream

P = ParamSpec("P")
T = TypeVar("T")


def _sends(make: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @named_after(make)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(make(*args, **kwargs))

    return method


def _runs(make: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    @named_after(make)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(make(*args, **kwargs))

    return method


def _streams(make: Callable[P, Call[Any]]) -> Callable[Concatenate[Client, P], TextStream]:
    @named_after(make)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> TextStream:
        return self._stream(make(*args, **kwargs))

    return method


class Client:
    """A client whose methods wait for the server's answer. Threads may share it. A ``with`` block closes it.

    Args:
        url: of the server, with the path that a proxy serves it under, if any.
        api_key: sent as ``Authorization: Bearer``.
        timeout: seconds until the client gives up a call, all attempts together.
        retries: when a failed call is sent again.
        verify: whether to check the server's TLS certificate; a context says which certificates to trust.
        transport: carries requests in place of the network, e.g. in tests.

    Raises:
        ClientError: the URL or the key does not have a usable form.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: Retries = STANDARD,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = Address(url, api_key)
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.Client(**self._address.options(verify), transport=transport)

    predict = _sends(calls.predict)
    predict_many = _sends(calls.predict_many)
    generate = _sends(calls.generate)
    stream = _streams(calls.stream)
    tasks = _sends(calls.tasks)
    task = _sends(calls.task)
    history = _sends(calls.history)
    publish = _runs(publishing.publish)
    promote = _sends(calls.promote)
    rollback = _sends(calls.rollback)
    delete_version = _sends(calls.delete_version)
    delete_task = _sends(calls.delete_task)
    route = _sends(calls.route)
    set_route = _sends(calls.set_route)
    clear_route = _sends(calls.clear_route)
    rollback_route = _sends(calls.rollback_route)
    base = _sends(calls.base)
    verify = _sends(calls.verify)
    adopt_store = _sends(calls.adopt_store)
    replicas = _sends(calls.replicas)
    collect_garbage = _sends(calls.collect_garbage)
    keys = _sends(calls.keys)
    create_key = _sends(calls.create_key)
    revoke_key = _sends(calls.revoke_key)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._address.url!r})"

    def _send(self, call: Call[T]) -> T:
        sending = Sending(call, self._address.url, self._timeout, self._retries)
        while True:
            try:
                return call.read(self._http.request(**sending.attempt()))
            except (ClientError, httpx.RequestError) as error:
                time.sleep(sending.pause(error))

    def _stream(self, call: Call[Any]) -> TextStream:
        return TextStream(self._http, Sending(call, self._address.url, self._timeout, self._retries))

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                step = flow.send(self._send(step) if isinstance(step, Call) else step())
        except StopIteration as ended:
            result: T = ended.value
            return result
        finally:
            flow.close()
