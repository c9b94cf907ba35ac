"""Requests and replies, independent of sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Tuple

from . import delivery, json_text
from .errors import ClerkError

LARGEST_BODY = 1024 * 1024  # inferred: Clerk names the error, not the size


@dataclass
class Request:
    """One HTTP request, completely read. Header names are in lower case."""

    method: str
    path: str
    query: Dict[str, List[str]]
    headers: Dict[str, str]
    body: bytes
    connection: int
    time: int

    def json(self):
        """The body's JSON value, refused as Clerk refuses it: content type, size, syntax."""
        content_type = self.headers.get("content-type", "")
        if content_type.split(";")[0].strip().lower() != "application/json":
            raise ClerkError("unsupported_content_type", value=content_type or "''")
        if len(self.body) > LARGEST_BODY:
            raise ClerkError("request_body_too_large", limit=LARGEST_BODY)
        try:
            return json_text.parse(self.body)
        except ValueError:
            raise ClerkError("request_body_invalid") from None

    def body_for_journal(self):
        """What was sent, as far as it can be shown: JSON, else text, else null."""
        try:
            return json_text.parse(self.body)
        except ValueError:
            return self.body.decode("utf-8", "backslashreplace") or None


@dataclass
class Reply:
    """An answer, and how it reaches the client. No status means that no answer is sent."""

    status: Optional[int]
    document: object = None
    body: Optional[bytes] = None
    content_type: str = "application/json"
    headers: List[Tuple[str, str]] = field(default_factory=list)
    code: Optional[str] = None
    content_length: Optional[int] = None
    tracing: Tuple[str, ...] = ("x-clerk-trace-id", "cf-ray")
    deliver: Callable = delivery.whole

    def payload(self) -> bytes:
        """The bytes of the body: as given, else the document's."""
        return json_text.encode(self.document) if self.body is None else self.body

    def succeeded(self) -> bool:
        return self.status == 200
