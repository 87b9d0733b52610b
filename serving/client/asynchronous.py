"""The client for asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
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
from serving.client.streams import AsyncTextStream

P = ParamSpec("P")
T = TypeVar("T")


def _sends(make: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @named_after(make)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(make(*args, **kwargs))

    return method


def _runs(make: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @named_after(make)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(make(*args, **kwargs))

    return method


def _streams(make: Callable[P, Call[Any]]) -> Callable[Concatenate[AsyncClient, P], AsyncTextStream]:
    @named_after(make)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncTextStream:
        return self._stream(make(*args, **kwargs))

    return method


class AsyncClient:
    """A client for asyncio, with the arguments of `Client`. An ``async with`` block closes its connections."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: Retries = STANDARD,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = Address(url, api_key)
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.AsyncClient(**self._address.options(verify), transport=transport)

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

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._address.url!r})"

    async def _send(self, call: Call[T]) -> T:
        sending = Sending(call, self._address.url, self._timeout, self._retries)
        while True:
            try:
                return call.read(await self._http.request(**sending.attempt()))
            except (ClientError, httpx.RequestError) as error:
                await asyncio.sleep(sending.pause(error))

    def _stream(self, call: Call[Any]) -> AsyncTextStream:
        return AsyncTextStream(self._http, Sending(call, self._address.url, self._timeout, self._retries))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                step = flow.send(await (self._send(step) if isinstance(step, Call) else asyncio.to_thread(step)))
        except StopIteration as ended:
            result: T = ended.value
            return result
        finally:
            flow.close()
