"""The Python API of the client, by inspection: its methods are made of shared descriptions of calls, and its results
are pydantic models, so reading the sources alone would show neither."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

import serving.client
from docs.generators.docstrings import markdown
from docs.generators.tables import table

_LONGEST = 88


def client() -> str:
    """A section for every public name of `serving.client`: the two clients, then all others by the alphabet."""
    first = ["Client", "AsyncClient"]
    names = [*first, *sorted(set(serving.client.__all__) - {*first})]
    return "\n\n".join(part for name in names for part in _class(name, getattr(serving.client, name))) + "\n"


def methods(one: type) -> dict[str, Any]:
    """The public methods and properties that a class has from this package, by their names."""
    own = [base for base in one.__mro__ if base.__module__.startswith("serving.client")]
    found = {name: value for base in reversed(own) for name, value in vars(base).items() if name[0] != "_"}
    return {name: value for name, value in found.items() if inspect.isfunction(value) or isinstance(value, property)}


def _class(name: str, one: type) -> Iterator[str]:
    yield f"## {name}"
    if not issubclass(one, BaseModel | Exception):
        yield _signature(name, one)
    yield markdown(one.__doc__)
    if issubclass(one, BaseModel):
        fields = one.model_fields.items()
        rows = [(f"`{field}`", f"`{_type(about.annotation)}`", about.description or "") for field, about in fields]
        yield table(("field", "type", "meaning"), rows)
    for method, value in methods(one).items():
        yield f"### {name}.{method}"
        if not isinstance(value, property):
            yield _signature(method, value)
        yield markdown(inspect.getdoc(value))


class _Written(str):
    """An annotation as it stands in the source, without the quotes that `inspect` would put around it."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(name: str, what: Any) -> str:
    found = inspect.signature(what)
    parameters = [
        one.replace(annotation=_written(one.annotation)) for one in found.parameters.values() if one.name != "self"
    ]
    answer = inspect.Signature.empty if inspect.isclass(what) else _written(found.return_annotation)
    name = f"async {name}" if inspect.iscoroutinefunction(what) else name
    text = f"{name}{found.replace(parameters=parameters, return_annotation=answer)}"
    if len(text) > _LONGEST:
        ends = "" if answer is inspect.Signature.empty else f" -> {answer}"
        inner = _with_marks(parameters)
        text = f"{name}(\n" + "".join(f"    {part},\n" for part in inner) + f"){ends}"
    return f"```python\n{text}\n```"


def _with_marks(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """Parameters one by one, with the star before those that are given by name."""
    starred = False
    for one in parameters:
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        starred = starred or one.kind is inspect.Parameter.VAR_POSITIONAL
        yield str(one)


def _written(annotation: Any) -> Any:
    return annotation if annotation is inspect.Signature.empty else _Written(_type(annotation))


def _type(annotation: Any) -> str:
    """A type as one would write it, without the modules that its names come from."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)
