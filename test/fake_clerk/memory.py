"""What the fake keeps when it is killed, as the real Clerk keeps what it has: events, one JSON object a line.

An event is written before its answer goes out. What was written when the process is killed is in the file.
"""

from __future__ import annotations

import json
import os
from typing import Iterator, Optional

from . import json_text


class Memory:
    """A file of events, or none. Nothing is noted before the old ones were recalled; callers serialize."""

    def __init__(self, path: Optional[str]):
        self._path = path
        self._file = None

    def recalled(self) -> Iterator[dict]:
        """The events in order. The last line may be incomplete; then its request was not answered."""
        if self._path is None or not os.path.exists(self._path):
            return
        with open(self._path, encoding="utf-8") as file:
            lines = file.read().split("\n")
        for line in lines[:-1]:
            yield json.loads(line, parse_float=json_text.Number)

    def begin(self):
        """From now on events are noted, after the last complete one."""
        if self._path is None:
            return
        self._file = open(self._path, "ab")
        with open(self._path, "rb") as file:
            content = file.read()
        self._file.truncate(content.rfind(b"\n") + 1)

    def note(self, event: dict):
        if self._file is not None:
            self._file.write(json_text.encode(event) + b"\n")
            self._file.flush()

    def forget(self):
        """Nothing has ever happened."""
        if self._path is not None and os.path.exists(self._path):
            os.truncate(self._path, 0)
