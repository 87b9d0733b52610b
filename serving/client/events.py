"""Reads a stream of text: lines of server-sent events become pieces. Sends nothing and waits for nothing."""

from __future__ import annotations

import httpx
import orjson
from pydantic import ValidationError

from serving.client.errors import ClientError, ReplyError, UnreachableError, stream_error
from serving.client.results import TextEnd, TextPiece


class EventReader:
    """Takes the lines of one answer.

    Attributes:
        end: what the server said after the last piece; None until then.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._name = ""
        self.end: TextEnd | None = None

    def read(self, line: str) -> TextPiece | None:
        """The piece that a line completes, if it completes one.

        Raises:
            ApiError: the server says that it failed.
            ReplyError: the line does not have the form of the server's.
        """
        field, _, value = line.partition(": ")
        if field == "event":
            self._name = value
            return None
        if field != "data":
            return None  # an empty line, or a comment, which keeps the connection alive
        try:
            if self._name == "piece":
                return TextPiece.model_validate_json(value)
            if self._name == "end":
                self.end = TextEnd.model_validate_json(value)
                return None
            if self._name == "error":
                raise stream_error(self._response, orjson.loads(value))
        except (ValidationError, orjson.JSONDecodeError) as error:
            raise self._unknown(line) from error
        raise self._unknown(line)

    def check_complete(self) -> TextEnd:
        """What the server said at last.

        Raises:
            UnreachableError: the stream stopped before its end.
        """
        if self.end is None:
            raise UnreachableError(f"{self._response.request.url} stopped in the middle of the text", sent=True)
        return self.end

    def _unknown(self, line: str) -> ClientError:
        return ReplyError(
            f"{self._response.request.url} sent {line[:100]!r}, which is no event of a ken-serve of this version"
        )
