"""JSON in and out, keeping every digit of a number and writing text the way Go's encoder does.

Clerk is written in Go and stores metadata as it was sent, so 1.10 stays 1.10 and 1e400 stays 1e400 (inferred). Python's
own module would turn both into floats.
"""

from __future__ import annotations

import json
import re

_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

# Go escapes control characters, the three characters that matter in HTML, and the two line ends of JavaScript. A lone
# surrogate is no character: Go writes U+FFFD for it.
_ESCAPED = re.compile('["\\\\\x00-\x1f<>&\u2028\u2029\ud800-\udfff]')


class Number:
    """A JSON number, kept as the text it arrived in."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self):
        return f"Number({self.text})"

    def is_integer(self) -> bool:
        return re.fullmatch(r"-?[0-9]+", self.text) is not None


def parse(data: bytes):
    """The value in a JSON document; raises ValueError for anything else, nesting that is too deep included."""
    try:
        return json.loads(
            data.decode("utf-8"), parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(value) -> bytes:
    """One JSON document, without white space, in UTF-8."""
    return encode_text(value).encode("utf-8")


def encode_text(value) -> str:
    if isinstance(value, str):
        return '"' + _ESCAPED.sub(_escape, value) + '"'
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join([f"{encode_text(key)}:{encode_text(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([encode_text(item) for item in value]) + "]"
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    raise TypeError(f"{type(value).__name__} has no place in a JSON document")


def _escape(match) -> str:
    character = match.group()
    if "\ud800" <= character <= "\udfff":
        return "\ufffd"
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04x}"


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not JSON")
