"""What was asked and what came of it: one JSON object a line, written before the answer goes out."""

from __future__ import annotations

import itertools
import threading
from typing import Optional

from . import json_text
from .api import Outcome
from .http_types import Request


class Journal:
    """Appends to a file, or to nothing. Holds neither the secret key nor an invitation's url."""

    def __init__(self, path: Optional[str], secret_key: str):
        self._file = open(path, "a", encoding="utf-8") if path else None
        self._secret_key = secret_key
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def write(self, request: Request, authorized: bool, outcome: Outcome):
        if self._file is None:
            return
        with self._lock:
            entry = self._entry(next(self._numbers), request, authorized, outcome)
            line = json_text.encode_text(entry).replace(self._secret_key, "[secret key]")
            self._file.write(line + "\n")
            self._file.flush()

    @staticmethod
    def _entry(number: int, request: Request, authorized: bool, outcome: Outcome) -> dict:
        headers = dict(request.headers)
        if "authorization" in headers:
            headers["authorization"] = "accepted" if authorized else "refused"
        return {
            "seq": number,
            "time": request.time,
            "connection": request.connection,
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "headers": headers,
            "body": request.body_for_journal(),
            "status": outcome.reply.status,
            "code": outcome.reply.code,
            "created": [invitation.reference() for invitation in outcome.created],
            "behaviour": outcome.behaviour,
            "violations": outcome.violations,
        }
