"""The file of signatures beside a delta file: the same name with ``.sig`` appended, a JSON list of `Signature`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from ken_core.writing import new_file
from serving.errors import InvalidInputError
from serving.security.signatures import Signature

_SIGNATURES = TypeAdapter(tuple[Signature, ...])


def signature_file(delta: Path) -> Path:
    """The path of the file with a delta file's signatures."""
    return delta.with_name(f"{delta.name}.sig")


def read_signatures(delta: Path) -> tuple[Signature, ...]:
    """The signatures beside a delta file, unchecked; none if there is no file of signatures.

    Raises:
        InvalidInputError: the file cannot be read, or is no list of signatures.
    """
    path = signature_file(delta)
    try:
        return _SIGNATURES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidInputError(
            f"{path}: {where}: {first['msg']}; expected the JSON list that `ken sign` writes"
        ) from None


def write_signatures(delta: Path, signatures: Sequence[Signature]) -> None:
    """Write the file of signatures beside a delta file, or replace it. Readers see the old file or the new one.

    Raises:
        OutputError: the file cannot be written.
    """
    with new_file(signature_file(delta)) as partial:
        partial.write_bytes(orjson.dumps([s.record() for s in signatures], option=orjson.OPT_INDENT_2) + b"\n")
