"""Which replicas keep the history of a store that is no more."""

from __future__ import annotations

from serving.store import Store


def keeping(store: Store) -> set[str]:
    """The replicas that report to keep an earlier history."""
    return {name for name, report in store.replicas.reports().items() if report.keeps is not None}
