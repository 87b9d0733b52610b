"""Log lines: one for each record, with the request's id, and without secrets."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import load_settings
from serving.security.keys import new_key
from serving.telemetry import logs
from serving.telemetry.audit import audit
from serving.telemetry.logs import HumanLines, JsonLines, Redaction, chosen_format, secrets_of

SECRET = 'hunter2"é'
Line = Callable[..., str]
FORMATS = [JsonLines, HumanLines]


def line(kind: type[logging.Formatter], message: str, *arguments: object, **record: Any) -> str:
    """A record as a logger writes it that knows one secret."""
    extra = record.pop("extra", {})
    exc_info = record.pop("exc_info", None)
    made = logging.LogRecord("serving.tests", logging.INFO, "", 0, message, arguments, exc_info)
    vars(made).update({**record, **extra})
    return kind(Redaction({SECRET})).format(made)


@pytest.fixture
def in_a_request() -> Iterator[str]:
    token = logs.request_id.set("request-1")
    yield "request-1"
    logs.request_id.reset(token)


def raised(text: str) -> Any:
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def test_a_json_line_says_when_how_bad_who_and_what(in_a_request: str) -> None:
    found = json.loads(
        line(JsonLines, "read %d %s", 2, "keys", created=0.25, extra={"task": "spam", "seconds": 0.5, "_ray": 1})
    )
    assert found == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "serving.tests",
        "message": "read 2 keys",
        "request_id": "request-1",
        "task": "spam",
        "seconds": 0.5,
    }


def test_an_exception_is_one_field_of_the_line() -> None:
    found = line(JsonLines, "failed", exc_info=raised("on purpose"))
    assert "\n" not in found
    assert json.loads(found)["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert json.loads(found)["exception"].endswith("ValueError: on purpose")


@given(st.text(), st.recursive(st.none() | st.floats() | st.integers() | st.text() | st.binary(), st.lists))
def test_any_message_and_field_is_one_line_of_json(message: str, value: Any) -> None:
    found = line(JsonLines, "%s", message, extra={"value": value})
    assert "\n" not in found
    assert json.loads(found)["logger"] == "serving.tests"


def test_an_extra_field_cannot_pass_for_one_of_ours() -> None:
    found = json.loads(line(JsonLines, "true", extra={"level": "critical", "logger": "x", "time": "never"}))
    assert (found["level"], found["logger"], found["message"]) == ("info", "serving.tests", "true")


def test_people_get_one_line_and_the_exception_below(in_a_request: str) -> None:
    found = line(HumanLines, "failed", exc_info=raised("on purpose"), extra={"task": "spam"})
    first, *rest = found.splitlines()
    assert first.endswith(" INFO serving.tests: failed task=spam request_id=request-1")
    assert rest[0] == "Traceback (most recent call last):"


@given(st.text())
def test_no_message_passes_for_two_lines_or_moves_the_cursor(message: str) -> None:
    found = line(HumanLines, "%s", f"a{message}\n\x1b[2Jb", extra={"task": message})
    assert not set(found) & {chr(i) for i in (*range(32), 127)}


# Secrets


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "record",
    [
        {"message": f"url redis://:{SECRET}@host"},
        {"message": "given %s", "args": (SECRET,)},
        {"message": "given %(a)s", "args": ({"a": SECRET},)},
        {"message": "given %s", "args": ({"headers": [SECRET]},)},
        {"message": "failed", "exc_info": raised(f"no {SECRET}")},
        {"message": "failed", "stack_info": f"stack {SECRET}"},
        {"message": "with", "extra": {"field": SECRET}},
        {"message": "with", "extra": {"field": {"deep": [SECRET, {SECRET: 1}]}}},
    ],
)
def test_a_known_secret_is_nowhere_in_a_line(record: dict[str, Any], kind: type[logging.Formatter]) -> None:
    rest = {name: value for name, value in record.items() if name not in ("message", "args")}
    found = line(kind, record["message"], *record.get("args", ()), **rest)
    assert "hunter2" not in found
    assert "redacted" in found


@pytest.mark.parametrize("kind", FORMATS)
def test_of_a_token_that_nobody_told_us_only_the_id_is_left(kind: type[logging.Formatter]) -> None:
    key, token = new_key("ci", ["predict"])
    secret = token.removeprefix(f"ken_{key.id}_")
    for found in (
        line(kind, f"Authorization: Bearer {token}"),
        line(kind, "given %r", {"authorization": token}),
        line(kind, "failed", exc_info=raised(token)),
    ):
        assert secret not in found
        assert f"ken_{key.id}_[redacted]" in found


def test_a_record_is_left_as_it_was_for_other_handlers() -> None:
    record = logging.makeLogRecord({"msg": "given %s", "args": (SECRET,), "exc_info": raised(SECRET)})
    before = dict(vars(record))
    JsonLines(Redaction({SECRET})).format(record)
    assert vars(record) == before


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        (None, set()),
        ("redis://host:6379/0", set()),
        ("redis://user@host:6379/0", set()),
        ("redis://user:p%40ss@host:6379/0", {"p%40ss", "p@ss"}),
        ("redis+sentinel://user:word@one:26379,two:26379/service", {"word"}),
        ("rediss://host:6379/0?password=p%40ss&ssl_password=key&db=1", {"p%40ss", "p@ss", "key"}),
        ("redis://:word@[host", {"redis://:word@[host"}),
    ],
)
def test_passwords_are_found_in_urls_as_written_and_as_sent(url: str | None, secrets: set[str]) -> None:
    assert secrets_of(load_settings(base="b", redis_url=url, admin_token="open-sesame")) == {*secrets, "open-sesame"}


def test_a_secret_is_found_as_python_and_json_spell_it() -> None:
    secret = 'it\'s "half\\open"'
    for spelt in (secret, repr(secret), json.dumps(secret), repr([secret])):
        assert "open" not in Redaction({secret})(f"given {spelt}")


def test_the_longest_of_two_secrets_is_redacted_whole() -> None:
    assert Redaction({"open", "open-sesame"})("open-sesame") == "[redacted]"


# The process


def run(code: str, **settings: str) -> list[str]:
    """The lines on stderr of a process with these settings for logs."""
    given = f"from serving.config import load_settings\nsettings = load_settings(base='b', **{settings!r})"
    prelude = "import logging\nfrom serving.telemetry.logs import configure\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{prelude}{given}\n{code}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def test_records_of_ray_serve_uvicorn_and_warnings_take_our_form() -> None:
    found = run(
        "import warnings\n"
        "for name in ('ray.serve', 'uvicorn.error'):\n"
        "    own = logging.getLogger(name); own.addHandler(logging.StreamHandler()); own.propagate = False\n"
        "configure(settings); configure(settings)\n"
        "logging.getLogger('ray.serve').warning('one')\n"
        "logging.getLogger('ray.serve').info('not this')\n"
        "logging.getLogger('uvicorn.error').error('two')\n"
        "warnings.warn('three')\n"
    )
    assert [json.loads(entry)["logger"] for entry in found] == ["ray.serve", "uvicorn.error", "py.warnings"]


def test_the_level_leaves_out_what_is_below_it_but_no_change() -> None:
    found = run(
        "configure(settings)\n"
        "from serving.telemetry.audit import audit\n"
        "logging.getLogger('serving').warning('not this')\n"
        "logging.getLogger('serving').error('this')\n"
        "audit('delete', 'ci', 'done', task='spam')\n",
        log_level="error",
    )
    assert [json.loads(entry)["message"] for entry in found] == ["this", "delete spam by ci: done"]


def test_without_a_terminal_lines_are_json_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, said, chosen in (
        (False, "auto", "json"),
        (True, "auto", "human"),
        (True, "json", "json"),
        (False, "human", "human"),
    ):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        assert chosen_format(load_settings(base="b", log_format=said)) == chosen


# Audit


def test_a_change_is_one_line_that_says_who_did_what(caplog: pytest.LogCaptureFixture, in_a_request: str) -> None:
    with caplog.at_level(logging.INFO, "ken.audit"):
        audit("key.create", "admin-token", "refused", name="x", args=[1], reason="no such scope")
    (record,) = caplog.records
    found = json.loads(JsonLines(Redaction(())).format(record))
    assert {name: value for name, value in found.items() if name not in ("time", "level")} == {
        "logger": "ken.audit",
        "message": "key.create by admin-token: refused",
        "action": "key.create",
        "who": "admin-token",
        "outcome": "refused",
        "detail": {"name": "x", "args": [1], "reason": "no such scope"},
        "request_id": "request-1",
    }
