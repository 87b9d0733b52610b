"""A function that runs once per key, however many callers ask for the key meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from serving.errors import UnavailableError

V = TypeVar("V")


class SingleFlight(Generic[V]):
    """Runs a function on a pool of threads, at most once at a time per key. Callers of one key share its result.

    Results are not kept: a call after the end of a run starts the next one.
    """

    def __init__(self, work: Callable[[str], V], threads: int, name: str) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._flights: dict[str, Future[V]] = {}

    def __call__(self, key: str) -> Future[V]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = Future()
                flight.set_running_or_notify_cancel()  # a caller that gives up must not cancel it for the others
                self._pool.submit(self._fly, key, flight)
                self._flights[key] = flight
            return flight

    def close(self) -> None:
        """Wait for what is running. Callers whose work has not begun get an `UnavailableError`."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            left, self._flights = self._flights, {}
        for flight in left.values():
            flight.set_exception(UnavailableError("the server is stopping"))

    def _fly(self, key: str, flight: Future[V]) -> None:
        try:
            result = self._work(key)
        except BaseException as error:
            with self._lock:
                del self._flights[key]
            flight.set_exception(error)
        else:
            with self._lock:
                del self._flights[key]
            flight.set_result(result)
