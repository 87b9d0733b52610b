"""The table of all errors that an HTTP answer can have, from `serving.errors`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from docs.generators.tables import table
from serving import errors as defined
from serving.errors import ServingError, StartError


def errors() -> str:
    """One row for each class of errors, by HTTP status."""
    rows = sorted((str(one.status), one.title, f"`{one.code}`" if one.code else "", _meaning(one)) for one in classes())
    return table(("status", "`title`", "OpenAI's `code`", "meaning"), rows)


def classes() -> Iterator[type[ServingError]]:
    """The errors of answers. `StartError` ends a process before it answers anybody."""
    for _, one in inspect.getmembers(defined, inspect.isclass):
        if issubclass(one, ServingError) and one not in (ServingError, StartError):
            yield one


def _meaning(error: type[ServingError]) -> str:
    return inspect.cleandoc(error.__dict__.get("__doc__") or "").partition("\n\n")[0]
