"""Clerk's own contract: contract.json, and whether requests and answers keep it.

A request that does not is refused, whatever else would have become of it, and noted where the tests look for it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from typing import List, NamedTuple, Optional

from .errors import ClerkError
from .http_types import Reply, Request

try:
    from jsonschema import Draft7Validator, validators
except ImportError:
    sys.exit("fake_clerk.py: needs the Python package jsonschema (Debian: python3-jsonschema)")

STATUS_READINGS = ("refuse", "all", "first", "last")

_CONTRACT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "contract.json")
_PATH_PARAMETERS = ("organization_id", "invitation_id")
_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")

# What is wrong with the whole comes before what is wrong with one of its parts.
_RANKS = {"required": 0, "additionalProperties": 1}


def _is_integer(checker, value) -> bool:
    """JSON Schema takes 1.0 for an integer; a client that sends it has lost track of its types."""
    return isinstance(value, int) and not isinstance(value, bool)


_Validator = validators.extend(
    Draft7Validator, type_checker=Draft7Validator.TYPE_CHECKER.redefine("integer", _is_integer)
)


class Violation(NamedTuple):
    """What a request or an answer does that the contract does not allow, in words without its values: some are secret."""

    text: str
    refusal: Optional[ClerkError]


class Contract:
    """The schemas, by operation."""

    def __init__(self, status_reading: str = "refuse", any_client: bool = False):
        with open(_CONTRACT, encoding="utf-8") as file:
            contract = json.load(file)
        definitions = contract["definitions"]
        if status_reading != "refuse":
            del definitions["statuses"]["maxItems"]
        if any_client:
            definitions["headers"] = definitions["headers_of_any_client"]
        self._definitions = definitions
        self._requests = {}
        self._queries = {}
        self._responses = {}
        for name, operation in contract["operations"].items():
            self._requests[name] = self._validator(operation["request"])
            self._queries[name] = operation["request"]["properties"]["query"].get("properties", {})
            self._responses[name] = self._validator(operation["response"])
        self._refusal = self._validator(definitions["refusal"])
        self._invitation = self._validator(definitions["invitation"])
        self._seen = set()

    def check_request(self, operation: str, parameters: List[str], request: Request) -> Optional[Violation]:
        """The first violation of a request to an operation, or None."""
        instance = {
            "path": dict(zip(_PATH_PARAMETERS, parameters)),
            "query": {name: self._argument(operation, name, values) for name, values in request.query.items()},
            "headers": request.headers,
        }
        if request.body:
            try:
                request.json()
            except ClerkError as refusal:
                return Violation(f"body: {refusal.code}", refusal)
            instance["body"] = json.loads(request.body.decode("utf-8"))
        found = sorted(self._requests[operation].iter_errors(instance), key=_rank)
        return Violation(_sentence(found[0]), _refusal(found[0])) if found else None

    def check_reply(self, operation: str, reply: Reply) -> Optional[Violation]:
        """The first violation of an operation's own answer, or None. An invitation that was seen before is not."""
        validator = self._responses[operation] if reply.succeeded() else self._refusal
        document = reply.document
        if reply.succeeded() and "data" in document:
            unseen = [each for each in document["data"] if _key(each) not in self._seen]
            document = {**document, "data": unseen}
        else:
            unseen = []
        error = next(validator.iter_errors(document), None)
        if error:
            return Violation("answer: " + _sentence(error), None)
        self._seen.update(_key(each) for each in unseen)
        return None

    def _validator(self, schema: dict):
        return _Validator({"definitions": self._definitions, "allOf": [schema]})

    def _argument(self, operation: str, name: str, values: List[str]):
        """The value of a query's parameter as its schema sees it: one, unless the schema has several."""
        schema = self._queries[operation].get(name, {})
        kind = self._definitions.get(schema.get("$ref", "").rpartition("/")[2], schema).get("type")
        if kind == "array":
            return values
        value = values[0] if len(values) == 1 else values
        if kind == "integer" and isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
            return int(value)
        return value


class ViolationLog:
    """Appends to a file, one line for each violation, or to nothing."""

    def __init__(self, path: Optional[str]):
        self._file = open(path, "a", encoding="utf-8") if path else None
        self._lock = threading.Lock()

    def write(self, request: Request, violations: List[str]):
        if self._file is None:
            return
        with self._lock:
            for text in violations:
                self._file.write(f"{request.method} {request.path}: {text}\n")
            self._file.flush()


def read_statuses(values: List[str], reading: str) -> List[str]:
    """Those of the repeated statuses that this Clerk honors."""
    if reading == "first":
        return values[:1]
    if reading == "last":
        return values[-1:]
    return values


def _key(invitation: dict) -> tuple:
    return invitation["id"], invitation["status"], invitation["url"] is None, "public_organization_data" in invitation


def _rank(error) -> int:
    return _RANKS.get(error.validator, 2)


def _sentence(error) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the whole"
    if error.validator in _RANKS:  # these messages have names only
        return f"{where}: {error.message}"
    return f"{where}: violates {error.validator} {json.dumps(error.validator_value)}"


def _refusal(error) -> ClerkError:
    """What Clerk says to it."""
    if not error.absolute_path:
        return ClerkError("request_body_invalid" if error.validator == "required" else "bad_request")
    part, *inner = error.absolute_path
    fields = [each for each in inner if isinstance(each, str)]
    if part == "path":
        return ClerkError("resource_not_found")
    if part == "headers":
        return _refusal_of_header(error, fields)
    if part == "body" and error.validator == "maxItems":
        return ClerkError("bulk_size_exceeded", limit=error.validator_value)
    if part == "body" and not fields and error.validator not in _RANKS:
        return ClerkError("request_body_invalid")
    return _refusal_of_field(error, part, fields)


def _refusal_of_header(error, fields: List[str]) -> ClerkError:
    name = fields[0] if fields else _first_missing(error)
    if name == "content-type":
        return ClerkError("unsupported_content_type", value=error.instance if fields else "''")
    if name == "clerk-api-version":
        return ClerkError("api_version_invalid")
    return ClerkError("bad_request")


def _refusal_of_field(error, part: str, fields: List[str]) -> ClerkError:
    if error.validator == "required":
        return ClerkError("form_param_missing", param=_first_missing(error))
    if error.validator == "additionalProperties":
        return ClerkError("form_param_unknown", param=_first_unknown(error))
    if error.validator == "minLength":
        return ClerkError("form_param_missing", param=fields[0])
    if error.validator == "type" and part == "body" and "object" not in error.validator_value:
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return ClerkError("form_param_type_invalid", param=fields[0], wanted=wanted[0])
    return ClerkError("form_param_value_invalid", param=fields[0], value=_shown(error.instance))


def _first_missing(error) -> Optional[str]:
    if error.validator != "required":
        return None
    return next(name for name in error.validator_value if name not in error.instance)


def _first_unknown(error) -> str:
    known = error.schema.get("properties", {})
    return next(name for name in error.instance if name not in known)


def _shown(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return value if isinstance(value, str) else json.dumps(value)
