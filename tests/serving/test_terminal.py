"""What commands print beside their results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serving import terminal
from serving.terminal import counted, error_line, fact, out, progress, say, table, warn

FOREIGN = "\x1b]0;owned\x07\x1b[2J[bold]news[/]\u202e\x9b1m"
"""Sets the terminal's title, clears it, is markup, and turns the direction of writing."""


def test_one_is_not_many() -> None:
    assert [counted(number, "key") for number in (0, 1, 2)] == ["0 keys", "1 key", "2 keys"]


def test_long_work_prints_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(terminal, "err", terminal.Console(stderr=True, soft_wrap=True, force_terminal=False))
    with progress("fine-tuning") as update:
        for step in range(1, 9):
            update(step, 8, f"loss {1 / step:.2f}")
    assert capsys.readouterr().err.splitlines() == ["fine-tuning loss 0.33: 3 of 8", "fine-tuning loss 0.17: 6 of 8"]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("uploading") as update:
        update(1, 1, "")
    assert capsys.readouterr().err == ""


def test_nothing_foreign_reaches_the_terminal_but_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    for told in (say, warn, error_line):
        told(FOREIGN)
    fact("labels", FOREIGN)
    out.print(table(FOREIGN, [FOREIGN, FOREIGN], [[FOREIGN, FOREIGN]]))
    printed = "".join(capsys.readouterr())
    assert printed.count("[bold]news[/]") == 9
    assert not set("\x1b\x07\x9b\u202e") & set(printed)
