"""Log lines: one for each record, as JSON or for people, with the request's id and without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import orjson

from serving.config import Settings

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered. The middleware sets it."""

AUDIT = "ken.audit"
_CHATTY = ("httpx", "httpcore", "ray", "ray.serve", "uvicorn", "uvicorn.error", "uvicorn.access")
_TOKEN = re.compile(r"ken_([0-9a-f]{12})_[A-Za-z0-9_-]+")
_REDACTED = "[redacted]"
_MOST_INTEGER = 1 << 63  # orjson writes no larger integers
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}
_CONTROL = {i: f"\\x{i:02x}" for i in (*range(32), 127)} | {10: "\\n", 13: "\\r", 9: "\\t"}


def configure(settings: Settings) -> None:
    """Send every record of this process to stderr in the format of the settings. May be called again.

    Ray Serve and uvicorn give their loggers handlers for stderr. Those handlers are removed, and this one is used.
    """
    handler = logging.StreamHandler(sys.stderr)
    redact = Redaction(secrets_of(settings))
    handler.setFormatter(JsonLines(redact) if chosen_format(settings) == "json" else HumanLines(redact))
    level = logging.getLevelName(settings.log_level.upper())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _CHATTY:
        logger = logging.getLogger(name)
        logger.setLevel(max(level, logging.WARNING, logger.level))
        for own in [h for h in logger.handlers if isinstance(h, logging.StreamHandler)]:
            if not isinstance(own, logging.FileHandler):
                logger.removeHandler(own)
        logger.propagate = True
    logging.getLogger(AUDIT).setLevel(logging.INFO)  # also if `log_level` leaves out other records of this level


def chosen_format(settings: Settings) -> Literal["json", "human"]:
    """The format that ``auto`` stands for in this process. The launcher decides for replicas, which write to a pipe."""
    if settings.log_format != "auto":
        return settings.log_format
    return "human" if sys.stderr.isatty() else "json"


def secrets_of(settings: Settings) -> set[str]:
    """The secrets of the settings, in each form in which a log line may contain them."""
    found = {settings.admin_token.get_secret_value()} if settings.admin_token else set()
    return found | (_passwords(settings.redis_secret) if settings.redis_secret else set())


def _passwords(url: str) -> set[str]:
    """The passwords of a URL, both as the URL spells them and decoded."""
    try:
        parts = urlsplit(url)
        quoted = {parts.password, *(v for k, _, v in (q.partition("=") for q in parts.query.split("&")) if "pass" in k)}
    except ValueError:
        return {url}
    return {form for password in quoted if password for form in (password, unquote(password))}


class Redaction:
    """Removes known secrets, and all that looks like an API key, from text. A key's id stays, to tell whose it is."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for s in secrets for form in (s, repr(s)[1:-1], orjson.dumps(s).decode()[1:-1])}
        longest_first = sorted(forms, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, value: Any) -> Any:
        """The value in a form that JSON can hold, redacted at any depth."""
        match value:
            case None | bool() | float():
                return value
            case int() if abs(value) < _MOST_INTEGER:
                return value
            case dict():
                return {self._text(str(k)): self(v) for k, v in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self(v) for v in value]
            case _:
                return self._text(str(value))

    def _text(self, text: str) -> str:
        text = _TOKEN.sub(rf"ken_\1_{_REDACTED}", text.encode("utf-8", "backslashreplace").decode())
        return self._secrets.sub(_REDACTED, text) if self._secrets else text


class _Lines(logging.Formatter):
    """Formats with redaction. A filter could not redact: only the formatter sees the final text, with exceptions, and a
    changed record would be changed for other handlers too."""

    def __init__(self, redact: Redaction) -> None:
        super().__init__()
        self._redact = redact

    def _extra(self, record: logging.LogRecord) -> dict[str, Any]:
        given = vars(record).items()
        found = {k: v for k, v in given if k not in _STANDARD and not k.startswith("_") and v is not None}
        if (current := request_id.get()) is not None:
            found.setdefault("request_id", current)
        return self._redact(found)  # type: ignore[no-any-return]

    def _exception(self, record: logging.LogRecord) -> str | None:
        parts = [
            self.formatException(record.exc_info) if record.exc_info else record.exc_text,
            self.formatStack(record.stack_info) if record.stack_info else None,
        ]
        return self._redact("\n".join(filter(None, parts))) or None


class JsonLines(_Lines):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            **self._extra(record),
            "time": _moment(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        if (exception := self._exception(record)) is not None:
            line["exception"] = exception
        return orjson.dumps(line).decode()


class HumanLines(_Lines):
    """One line for each record, then its exception. Control characters are escaped, so no record looks like two."""

    def format(self, record: logging.LogRecord) -> str:
        when = _moment(record).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        message = str(self._redact(record.getMessage())).translate(_CONTROL)
        extra = "".join(f" {k}={v}".translate(_CONTROL) for k, v in self._extra(record).items())
        exception = self._exception(record)
        return f"{when} {record.levelname} {record.name}: {message}{extra}" + (f"\n{exception}" if exception else "")


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
