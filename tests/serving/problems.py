"""Failures as the native protocol tells them."""

from __future__ import annotations

import httpx


def is_problem(response: httpx.Response, status: int, *words: str) -> bool:
    """Whether an answer is RFC 9457 problem JSON with its request's id, and names what it should."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["request_id"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert all(word in body["detail"] for word in words), body["detail"]
    return True
