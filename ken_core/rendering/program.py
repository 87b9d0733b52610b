"""The program of a renderer: it reads questions, one JSON object a line, and writes an answer a line.

A question is ``{"template": text, "variables": {...}}``; an answer is ``{"text": ...}`` or ``{"error": ..., "raised":
whether the template raised it by itself}``, with ``"last": true`` if the process ends after it. Run as a file, so that
it imports nothing but jinja2: it starts within a tenth of a second.

Templates see what Transformers shows them: jinja's sandbox without changes to values, blocks trimmed, `break` and
`continue`, a ``generation`` block, `tojson` that escapes no HTML, `raise_exception`, `strftime_now`, `dict` and
`namespace`.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_LONGEST_REASON = 300
_KEPT = 32
"""Compiled templates that are kept."""


class Raised(TemplateError):
    """The template called `raise_exception`."""


class GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what an assistant says; rendered, it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        content = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], content).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())


class GuardedNamespace(Namespace):
    """A namespace without names that begin with an underscore, which would reach into Python itself."""

    def __init__(*given: Any, **named: Any) -> None:
        self, *others = given  # `self` may be one of the names
        for name in (values := dict(*others, **named)):
            _refuse_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class DictMaker:
    """`dict` as templates may use it: a call, and `fromkeys`."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template may not have the name {name!r}")


def _raise(message: object) -> None:
    raise Raised(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Environment:
    """The jinja2 environment of chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    made.globals["dict"] = DictMaker()
    made.globals["namespace"] = GuardedNamespace
    return made


@lru_cache(_KEPT)
def _compiled(text: str) -> Template:
    return environment().from_string(text)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Render, and tell what went wrong; running out of memory leaves a process that must end."""
    try:
        text = _compiled(question["template"]).render(question["variables"])
        text.encode()  # half of a surrogate pair is no text
        return {"text": text}
    except MemoryError:
        return {"error": "it takes too much memory", "raised": False, "last": True}
    except Raised as error:
        return {"error": _as_text(str(error)), "raised": True}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        place = f" in line {line}" if (line := getattr(error, "lineno", None)) else ""
        return {"error": _as_text(f"{type(error).__name__}{place}: {lines[0]}"), "raised": False}


def _as_text(reason: str) -> str:
    return reason[:_LONGEST_REASON].encode(errors="replace").decode()


def main(seconds: float, memory: int) -> None:
    """Answer until the input ends.

    Args:
        seconds: of processor time for an answer, after which the process is killed.
        memory: bytes of memory that the process may have.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            told = answer(json.loads(line))
            told |= {"last": True} if _memory_used() > memory // 2 else {}
            data = json.dumps(told).encode()
        except MemoryError:
            data = b'{"error": "it takes too much memory", "raised": false, "last": true}'
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()
        if b'"last": true' in data[-16:]:
            return


def _memory_used() -> int:
    """Bytes that the process has: what a large template took is not always given back. 0 where that is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
