"""What both demonstrations check and print."""

from __future__ import annotations

from collections.abc import Sequence

from serving.client import Change, Client
from serving.demo.prepare import DemoError
from serving.terminal import out, say

WAIT_SECONDS = 10.0
"""For all replicas to answer by a change."""


def heading(number: int, text: str) -> None:
    """Print the title of a step."""
    out.print(f"\n[bold]{number}.[/] {text}", highlight=False)


def check_seen(change: Change) -> None:
    """Raise `DemoError` unless all replicas answer by a change."""
    if change.pending:
        late = ", ".join(change.pending)
        raise DemoError(f"{late} did not report revision {change.revision} within {WAIT_SECONDS:g} s")


def verify(client: Client) -> None:
    """Raise `DemoError` unless the base in memory is its checkpoint's, bit for bit."""
    found = client.verify()
    if found.differing:
        raise DemoError(f"these tensors in memory differ from the base: {', '.join(found.differing)}")
    if found.differing_in_file:
        raise DemoError(
            f"the base's file was changed; these tensors in it differ: {', '.join(found.differing_in_file)}"
        )
    say(f"  all {found.tensors} tensors of the base in memory are bit for bit equal to the checkpoint's")


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value of sorted ones below which a share of them lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
