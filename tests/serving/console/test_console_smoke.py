"""The console at a glance: the list of tasks, and an answer."""

from __future__ import annotations

from collections.abc import Callable

from browsing import Console
from over_http import Served


def test_the_page_lists_tasks_and_asks_one(small: Served, console_of: Callable[..., Console]) -> None:
    console = console_of(small.url)
    console.page.goto(small.url)
    console.sees("spam")
    console.page.get_by_role("link", name="spam").click()
    console.page.get_by_role("link", name="Try it").click()
    console.press("Ask")
    console.page.locator(".output").wait_for()
    answer = small.native("spam", "How far is it to Denver?")[0]
    expected = [part for one in answer for part in (one["label"], f"{one['score']:.3f}")]
    assert console.page.locator(".output").inner_text().split() == expected
