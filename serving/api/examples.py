"""An example of each answer, by the name of its schema in the OpenAPI document."""

from __future__ import annotations

from typing import Any

_LIVE = "8360a4ed8d1e3f0d6bb1d4ba0c4e4c15ac3e1d5a1a3a3f5a6e0f6c5cfa2d9b71"
_CANARY = "1f0c3e7b6a5d4c3b2a19087f6e5d4c3b2a19087f6e5d4c3b2a19087f6e5d4c3b"
_REPLICA = "server-0"
_TASK = {
    "name": "trec",
    "revision": 17,
    "aliases": {"live": _LIVE, "canary": _CANARY},
    "versions": [_LIVE, _CANARY],
    "route": {"live": 90, "canary": 10},
}
_KEY = {
    "id": "4f0c9a6be1d2",
    "name": "search team",
    "scopes": ["predict"],
    "tasks": ["trec*"],
    "created": 1767225600,
    "expires": None,
}

EMBEDDINGS = [[0.12, -0.03, 0.57]]
LABELS = [{"label": "NUM", "score": 0.98}, {"label": "LOC", "score": 0.02}]
RANKS = [{"index": 0, "score": 0.97}, {"index": 1, "score": 0.02}]

_ANSWER = {
    "task": "trec",
    "digest": _LIVE,
    "kind": "text-classification",
    "outputs": [LABELS],
    "truncated": [],
}
_FAILED = {
    "task": "trek",
    "error": {
        "type": "about:blank",
        "title": "Unknown task",
        "status": 404,
        "detail": "there is no task 'trek'; did you mean 'trec'?",
        "request_id": "a650e05d403c49529ed7cb4abaf4a736",
        "retry_after": None,
    },
}

_MADE = {"id": "4f0c9a6be1d24d5f9f0b6a1c2d3e4f50", "created": 1767225600, "model": "support"}
_TEXT_USAGE = {"prompt_tokens": 31, "completion_tokens": 12, "total_tokens": 43}

_RATES = {
    "requests_per_second": 41.5,
    "failed_per_second": 0.0,
    "refused_per_second": 0.5,
    "failed_share": 0.0,
    "tokens_per_second": 0.0,
    "p50_seconds": 0.012,
    "p95_seconds": 0.031,
    "p99_seconds": 0.048,
}

ANSWERS: dict[str, Any] = {
    "ActivityInfo": {
        "at": 1767225600.5,
        "seconds": 10.2,
        "tasks": [{"task": "trec", **_RATES, "held": {_REPLICA: "packed"}, "hit_rate": 0.998}],
        "versions": [{"task": "trec", "version": _LIVE[:12], **_RATES}],
        "shadows": [
            {"task": "trec", "version": _CANARY[:12], "agreed": 980, "differed": 17, "failed": 0, "skipped": 3}
        ],
        "replicas": [
            {
                "replica": _REPLICA,
                "ready": True,
                "in_flight": 3,
                "requests_per_second": 41.5,
                "waiting_inputs": 2,
                "mixed_share": 0.7,
                "swaps_per_second": 1.4,
                "bytes_by_tier": {"base": 90852864, "packed": 16777216},
                "up_seconds": 3600.0,
                "held_tasks": 42,
                "trouble": [],
            }
        ],
        "unread": {},
    },
    "RankedDocuments": {
        "id": "a650e05d403c49529ed7cb4abaf4a736",
        "results": [{"index": 0, "relevance_score": 0.97}],
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": 34}},
        "model": "passages",
        "usage": {"total_tokens": 34},
    },
    "BaseInfo": {"name": "minilm", "fingerprint": _CANARY, "bytes": 90852864, "replica": _REPLICA, "trouble": None},
    "HistoryEntry": {
        "action": "publish",
        "alias": "canary",
        "digest": _CANARY,
        "previous": "",
        "who": "ci/4f0c9a6be1d2",
        "when": 1767225600,
        "revision": 17,
    },
    "ChangeAnswer": {"task": "trec", "revision": 17, "seen": [_REPLICA], "pending": [], "silent": {}},
    "ChatCompletion": {
        **_MADE,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "I am sorry to hear that.", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": _TEXT_USAGE,
        "system_fingerprint": _LIVE[:12],
    },
    "Completion": {
        **_MADE,
        "object": "text_completion",
        "choices": [{"index": 0, "text": " Spain stays mainly", "finish_reason": "length", "logprobs": None}],
        "usage": _TEXT_USAGE,
        "system_fingerprint": _LIVE[:12],
    },
    "Chunk": {"digest": _CANARY, "index": 0, "bytes": 4194304},
    "Collected": {
        "deltas": 2,
        "bytes": 16777216,
        "held_deltas": 1,
        "held_bytes": 8388608,
        "held_until": 1767225600,
    },
    "Embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": EMBEDDINGS[0]}],
        "model": "faq-search",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    },
    "Info": {
        "model_id": "minilm",
        "model_sha": _CANARY,
        "model_dtype": "float32",
        "max_concurrent_requests": 1024,
        "max_input_length": 512,
        "max_batch_tokens": 4096,
        "max_batch_requests": 32,
        "max_client_batch_size": 256,
        "auto_truncate": True,
        "version": "0.1.0",
    },
    "GenerateAnswer": {
        "task": "poems",
        "digest": _LIVE,
        "choices": [{"text": " Spain stays mainly", "finish": "length", "stop": None}],
        "usage": {"prompt_tokens": 4, "generated_tokens": 4},
    },
    "Kept": {
        "task": "trec",
        "digest": _LIVE,
        "method": "magnitude",
        "kind": "text-classification",
        "kinds": ["text-classification"],
        "labels": ["NUM", "LOC"],
        "bytes": 2097152,
        "unit": "positions",
        "layers": [
            {
                "layer": 0,
                "module": "attention.self.query",
                "unit": "positions",
                "kept": 14746,
                "of": 147456,
                "share": 0.1,
                "bytes": 9216,
            }
        ],
    },
    "KeyInfo": _KEY,
    "Live": {"live": True},
    "ManyTasksAnswer": {"results": [{**_ANSWER, "task": "trec@live"}, _FAILED]},
    "Model": {"id": "trec", "object": "model", "created": 0, "owned_by": "ken-serve"},
    "Models": {
        "object": "list",
        "data": [{"id": "trec", "object": "model", "created": 0, "owned_by": "ken-serve"}],
    },
    "ModelMetadata": {
        "name": "trec",
        "versions": [_LIVE, _CANARY],
        "platform": "pytorch_ken",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
        ],
    },
    "ModelReady": {"name": "trec", "ready": True},
    "NewKey": {
        **_KEY,
        "token": "ken_4f0c9a6be1d2_kQ2mC0b6k5vQ0Jx1m3p8h7c2r9t4w6y8z1a3b5c7d9e",
        "revision": 18,
        "seen": [_REPLICA],
        "pending": [],
        "silent": {},
        "notice": None,
    },
    "OverlapInfo": {
        "tasks": ["trec", "mood"],
        "shared": [[1.0, 0.137], [0.137, 1.0]],
        "by_chance": [[1.0, 0.13], [0.13, 1.0]],
        "left_out": {"poems": "its delta keeps no positions (svd)"},
    },
    "PredictAnswer": _ANSWER,
    "Ready": {"ready": True},
    "ReplicaInfo": {
        "name": _REPLICA,
        "revision": 17,
        "metrics": "10.0.3.7:40123",
        "silent_seconds": 0.0,
        "ready": True,
        "in_flight": 3,
        "seen": 5,
        "held_tasks": 42,
    },
    "Revoked": {"task": None, "revision": 19, "seen": [_REPLICA], "pending": [], "silent": {}, "notice": None},
    "ServerMetadata": {"name": "ken-serve", "version": "0.1.0", "extensions": []},
    "Readiness": {
        "status": "ready",
        "store": {"reachable": True, "silent_seconds": 0.0, "other_history": False, "trouble": None},
        "placement": {"epoch": 5, "seen": 5, "enforced": True, "trouble": None},
    },
    "Status": {"status": "ok"},
    "SessionInfo": {
        "needs_key": True,
        "key": {name: _KEY[name] for name in ("id", "name", "scopes", "tasks", "expires")},
        "csrf": "9f2b1c04d7e85a6b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b",
        "expires": 1767229200,
        "version": "0.1.0",
        "base": "minilm",
        "replica": _REPLICA,
    },
    "TargetGroup": {"targets": ["10.0.3.7:40123"], "labels": {"replica": _REPLICA}},
    "TaskDetail": {
        **_TASK,
        "replica": _REPLICA,
        "tiers": {_LIVE: "packed", _CANARY: "disk"},
        "hits": {"packed": 940, "disk": 1},
        "hit_rate": 0.998,
        "unmixed": {},
    },
    "TaskFailure": _FAILED,
    "TaskInfo": _TASK,
    "UploadInfo": {"digest": _CANARY, "received": [0, 1], "bytes": 8388608, "complete": False},
    "Verification": {"tensors": 103, "differing": [], "differing_in_file": []},
}
