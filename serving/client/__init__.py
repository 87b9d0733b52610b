"""Clients of a running ken-serve: `Client` is synchronous, `AsyncClient` is for asyncio. Both have the same methods.

They need httpx, pydantic and orjson, and import neither torch, Ray nor Transformers.

    with Client("http://127.0.0.1:8000") as client:
        client.predict("trec", "How far is it to Denver?").outputs
"""

from serving.client.asynchronous import AsyncClient
from serving.client.errors import ApiError, ClientError, ReplyError, UnreachableError
from serving.client.merge import Merge
from serving.client.results import (
    BaseInfo,
    Candidate,
    Change,
    Collected,
    Continuation,
    Generated,
    GeneratedToken,
    HistoryEntry,
    KeyInfo,
    NewKey,
    Prediction,
    Predictions,
    Replica,
    Revoked,
    RouteInfo,
    TaskAnswer,
    TaskDetail,
    TaskError,
    TaskFailure,
    TaskInfo,
    TextEnd,
    TextPiece,
    TextUsage,
    Upload,
    Verification,
)
from serving.client.retries import Retries
from serving.client.streams import AsyncTextStream, TextStream
from serving.client.synchronous import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncTextStream",
    "BaseInfo",
    "Candidate",
    "Change",
    "Client",
    "ClientError",
    "Collected",
    "Continuation",
    "Generated",
    "GeneratedToken",
    "HistoryEntry",
    "KeyInfo",
    "Merge",
    "NewKey",
    "Prediction",
    "Predictions",
    "Replica",
    "ReplyError",
    "Retries",
    "Revoked",
    "RouteInfo",
    "TaskAnswer",
    "TaskDetail",
    "TaskError",
    "TaskFailure",
    "TaskInfo",
    "TextEnd",
    "TextPiece",
    "TextStream",
    "TextUsage",
    "UnreachableError",
    "Upload",
    "Verification",
]
