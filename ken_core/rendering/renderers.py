"""Processes that render chat templates. A template may loop for ever or ask for any memory, and Python code cannot be
stopped inside its process: so the process ends, and another one takes its place."""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import orjson

from ken_core.errors import TemplateError
from ken_core.rendering import program

SECONDS = 2.0
"""Of processor time for a rendering. Known templates take under 10 ms for a thousand messages."""
_WALL_SECONDS = 30.0
"""After which a renderer that gets no processor time is given up."""
MEMORY = 256 << 20
"""Bytes of a renderer's memory, of which Python and jinja2 take 25 MB."""
_AT_ONCE = 2
_VARIABLES = ("TZ", "TZDIR", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What a renderer sees of the environment, which may hold secrets."""


class Renderers:
    """A few processes, started as they are needed, which wait for their next question. May be used from any thread."""

    def __init__(self, most: int = _AT_ONCE) -> None:
        self._room = threading.BoundedSemaphore(most)
        self._idle: list[_Renderer] = []

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Render a template.

        Args:
            variables: plain JSON.

        Raises:
            TemplateError: the template raised, is no template, or takes too much time or memory.
        """
        try:
            question = orjson.dumps({"template": template, "variables": variables}, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise TemplateError(f"the messages or the template's arguments are no plain JSON: {error}") from error
        with self._room:
            renderer = self._idle_one() or _Renderer()
            try:
                told = renderer.ask(question)
            except BaseException:
                renderer.end()
                raise
            if told.get("last"):
                renderer.end()
            else:
                self._idle.append(renderer)
        if "error" not in told:
            return str(told["text"])
        if told["raised"]:
            raise TemplateError(f"the task's chat template refuses the messages: {told['error']}")
        raise TemplateError(f"the task's chat template fails on these messages: {told['error']}")

    def end(self) -> None:
        """End all processes that wait."""
        while self._idle:
            self._idle.pop().end()

    def _idle_one(self) -> _Renderer | None:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                renderer = self._idle.pop()
                if renderer.lives:
                    return renderer
                renderer.end()
        return None


class _Renderer:
    """One process, in conversation with one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this Python, and a file of this package
            [sys.executable, "-I", program.__file__, str(SECONDS), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            bufsize=0,
        )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes) -> dict[str, Any]:
        """Raises `TemplateError` if the process ends instead of answering."""
        assert self._process.stdin is not None
        try:
            left = memoryview(question)
            while left:
                left = left[self._process.stdin.write(left) :]
            told: dict[str, Any] = orjson.loads(self._line())
        except BrokenPipeError:
            raise TemplateError(self._why_it_ended()) from None
        return told

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _line(self) -> bytes:
        """What the process writes up to the end of a line."""
        assert self._process.stdout is not None
        parts: list[bytes] = []
        until = time.monotonic() + _WALL_SECONDS
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while not (parts and parts[-1].endswith(b"\n")):
                if not waiting.select(until - time.monotonic()):
                    raise TemplateError(_too_slow(_WALL_SECONDS))
                part = self._process.stdout.read(1 << 20)
                if not part:
                    raise TemplateError(self._why_it_ended())
                parts.append(part)
        return b"".join(parts)

    def _why_it_ended(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGPROF:
            return _too_slow(SECONDS)
        return f"the task's chat template cannot be used: the process that rendered it ended with code {code}"


def _too_slow(seconds: float) -> str:
    return (
        f"the task's chat template takes over {seconds:g} s for these messages; send fewer, or publish the task with "
        "a template that ends"
    )


RENDERERS = Renderers()
"""Of this process; the other processes of a server have their own."""
atexit.register(RENDERERS.end)
