"""The table of misbehaviours, and how a request chooses one.

A creation request chooses by its address: the local part is x-NAME or x-NAME--anything, at any domain, where the
anything makes the address unique. In a bulk request the first such address decides. Any operation can also be told to
misbehave through the control endpoint "misbehave".

Every NAME takes two suffixes. With -after, what was asked for is done first, then the misbehaviour replaces the answer.
With -once (the last one if both are there), only the first request for that address misbehaves.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from email.utils import formatdate
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from . import delivery, json_text
from .errors import CODE_OF_SERVER_ERROR, ClerkError, error_object
from .http_types import Reply
from .json_text import Number
from .operations import CREATING, Call, refusal

REDIRECT_TARGET = "/v1/redirected"
NESTING = 100_000
LONG_HEADER_LENGTH = 256 * 1024
PLAIN_RETRY_SECONDS = 1

_CHOICE = re.compile(r"x-(.+?)(?:--.*)?", re.DOTALL)
_MARK = "\ue000"  # a private-use character that stands for the bytes to be smuggled in


class Misbehaviour(NamedTuple):
    """One line of the table: names that match the pattern, and what makes their reply."""

    pattern: "re.Pattern"
    function: Callable[..., Reply]


TABLE: List[Misbehaviour] = []


def misbehaviour(pattern: str):
    """Enter a function into the table. Named groups of the pattern become its arguments."""

    def enter(function):
        TABLE.append(Misbehaviour(re.compile(pattern), function))
        return function

    return enter


def find_misbehaviour(name: str) -> Callable[[Call], Reply]:
    """The misbehaviour of that name, without -once. A name that is not in the table is a mistake in a test."""
    for entry in TABLE:
        match = entry.pattern.fullmatch(name)
        if match:
            return lambda call: entry.function(call, **match.groupdict())
    if name.endswith("-after"):
        return _after_performing(find_misbehaviour(name[: -len("-after")]))
    raise ClerkError("unknown_behaviour", status=501)


def _after_performing(function: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
    def perform_first(call: Call) -> Reply:
        call.perform()
        return function(call)

    return perform_first


class Chooser:
    """Decides which request misbehaves; remembers what happens only once."""

    def __init__(self):
        self._lock = threading.Lock()
        self._used_up = set()
        self._ordered: Dict[str, deque] = {}

    def order(self, operation: str, name: str, times: int):
        """Let the next requests of an operation misbehave after those that were told to already; 0 of them: forget all."""
        find_misbehaviour(name)
        with self._lock:
            if times == 0:
                self._ordered.pop(operation, None)
            self._ordered.setdefault(operation, deque()).extend([name] * times)

    def choose(self, call: Call) -> Optional[str]:
        """The name of the misbehaviour this request gets, or None."""
        with self._lock:
            ordered = self._ordered.get(call.operation.name)
            if ordered:
                return ordered.popleft()
            if call.operation.name not in CREATING:
                return None
            address, name = first_choice(call)
            if name is None or not name.endswith("-once"):
                return name
            return None if self._is_used_up(address) else name

    def _is_used_up(self, address: str) -> bool:
        address = address.lower()
        used_up = address in self._used_up
        self._used_up.add(address)
        return used_up


def misbehave(name: str, call: Call) -> Reply:
    """The reply of the misbehaviour of that name."""
    plain = name[: -len("-once")] if name.endswith("-once") else name
    try:
        return find_misbehaviour(plain)(call)
    except ClerkError as error:
        return refusal(error)


def first_choice(call: Call) -> Tuple[str, Optional[str]]:
    """The first address in the body that names a misbehaviour, and the name."""
    for address in addresses(call):
        match = _CHOICE.fullmatch(address.rpartition("@")[0])
        if match:
            return address, match.group(1)
    return "", None


def addresses(call: Call) -> List[str]:
    """The addresses in a creation request's body, as far as it has any."""
    try:
        body = call.request.json()
    except ClerkError:
        return []
    items = body if isinstance(body, list) else [body]
    found = [item.get("email_address") for item in items if isinstance(item, dict)]
    return [address for address in found if isinstance(address, str)]


# Answers that refuse. Nothing is created, except partly.


@misbehaviour(r"error-(?P<status>\d{3})-(?P<code>[a-z0-9_]+)")
def any_error(call: Call, status: str, code: str) -> Reply:
    """Any status with any code, about the address that asked for it. Retry-After goes with 429."""
    address, _ = first_choice(call)
    reply = error_reply(int(status), code, addresses=[address] if address else addresses(call)[:1])
    if reply.status == 429:
        reply.headers.append(("Retry-After", str(PLAIN_RETRY_SECONDS)))
    return reply


@misbehaviour(r"partly-error-(?P<status>\d{3})-(?P<code>[a-z0-9_]+)")
def error_after_a_part(call: Call, status: str, code: str) -> Reply:
    """What stands before the address that asked for it is created, and all refused: were bulk not all-or-nothing."""
    wanted = addresses(call)
    address, _ = first_choice(call)
    call.perform_first(wanted.index(address) if address else len(wanted) // 2)
    return any_error(call, status, code)


@misbehaviour(r"(?P<status>50[0234])(-before)?")
def server_error(call: Call, status: str) -> Reply:
    return error_reply(int(status), CODE_OF_SERVER_ERROR[int(status)])


@misbehaviour(r"429(-(?P<seconds>\d+))?")
def too_many_requests(call: Call, seconds: Optional[str]) -> Reply:
    reply = error_reply(429, "too_many_requests")
    reply.headers.append(("Retry-After", seconds or str(PLAIN_RETRY_SECONDS)))
    return reply


@misbehaviour(r"429-empty")
def too_many_requests_without_body(call: Call) -> Reply:
    """The body of Clerk's 429 is not documented: clients must decide on the status alone."""
    return Reply(429, body=b"", headers=[("Retry-After", str(PLAIN_RETRY_SECONDS))])


@misbehaviour(r"429-date")
def too_many_requests_until_a_date(call: Call) -> Reply:
    """HTTP allows a date in Retry-After."""
    reply = error_reply(429, "too_many_requests")
    reply.headers.append(("Retry-After", formatdate(call.ledger.clock.seconds() + 2, usegmt=True)))
    return reply


@misbehaviour(r"429-none")
def too_many_requests_without_time(call: Call) -> Reply:
    return error_reply(429, "too_many_requests")


@misbehaviour(r"gone")
def gone(call: Call) -> Reply:
    return error_reply(410, "gone")


@misbehaviour(r"several-errors")
def several_errors(call: Call) -> Reply:
    errors = [
        error_object("form_param_format_invalid"),
        error_object("form_param_missing", param="role"),
        error_object("form_param_value_invalid", param="expires_in_days", value="400"),
    ]
    return Reply(422, {"errors": errors}, code=errors[0]["code"])


@misbehaviour(r"no-meta")
def error_without_meta(call: Call) -> Reply:
    reply = error_reply(422, "form_param_format_invalid")
    del reply.document["errors"][0]["meta"]
    return reply


@misbehaviour(r"no-trace")
def error_without_trace_id(call: Call) -> Reply:
    """Only cf-ray tells which request it was, as when the edge answers."""
    reply = error_reply(400, "bad_request")
    reply.tracing = ("cf-ray",)
    return reply


@misbehaviour(r"no-ids")
def error_without_any_id(call: Call) -> Reply:
    reply = error_reply(400, "bad_request")
    reply.tracing = ()
    return reply


@misbehaviour(r"errors-not-array")
def errors_is_text(call: Call) -> Reply:
    return Reply(400, {"errors": "something went wrong"})


@misbehaviour(r"errors-empty")
def errors_is_empty(call: Call) -> Reply:
    return Reply(400, {"errors": []})


@misbehaviour(r"echo-key")
def error_that_repeats_the_key(call: Call) -> Reply:
    """No client may pass this on."""
    reply = error_reply(400, "bad_request")
    key = call.request.headers["authorization"].split(" ", 1)[1]
    reply.document["errors"][0].update(message=f"Bad request {key}", long_message=f"The key {key} is not liked.")
    return reply


@misbehaviour(r"redirect")
def redirect(call: Call) -> Reply:
    """A client that follows it shows in the journal, with or without the key."""
    return Reply(307, body=b"", headers=[("Location", REDIRECT_TARGET)])


# Answers from something that is not Clerk, or that no client should swallow. Nothing is created.


@misbehaviour(r"html-(?P<status>\d{3})")
def html(call: Call, status: str) -> Reply:
    """What an edge server or a captive portal says."""
    page = f"<!DOCTYPE html>\n<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>\n"
    return Reply(int(status), body=page.encode(), content_type="text/html; charset=utf-8", tracing=("cf-ray",))


@misbehaviour(r"empty-(?P<status>\d{3})")
def empty(call: Call, status: str) -> Reply:
    return Reply(int(status), body=b"")


@misbehaviour(r"nested")
def deeply_nested(call: Call) -> Reply:
    return Reply(200, body=b"[" * NESTING + b"]" * NESTING)


@misbehaviour(r"not-object")
def array_for_an_object(call: Call) -> Reply:
    return Reply(200, ["not", "an", "object"])


@misbehaviour(r"huge")
def huge_body(call: Call) -> Reply:
    return Reply(200, body=b"", content_length=delivery.HUGE_LENGTH, deliver=delivery.stream_huge)


@misbehaviour(r"trickle")
def trickling_body(call: Call) -> Reply:
    return Reply(200, body=b"", content_length=delivery.TRICKLE_LENGTH, deliver=delivery.trickle)


# No answer. Nothing is created.


@misbehaviour(r"drop(-before)?")
def drop(call: Call) -> Reply:
    return Reply(None, body=b"", deliver=delivery.nothing_then_close)


@misbehaviour(r"reset(-before)?")
def reset(call: Call) -> Reply:
    return Reply(None, body=b"", deliver=delivery.nothing_then_reset)


@misbehaviour(r"hang(-before)?")
def hang(call: Call) -> Reply:
    return Reply(None, body=b"", deliver=delivery.nothing_until_client_leaves)


@misbehaviour(r"late-(?P<milliseconds>\d+)")
def late(call: Call, milliseconds: str) -> Reply:
    """The request is still on its way, and done later, when its connection is gone; nobody sees the answer."""
    timer = threading.Timer(int(milliseconds) / 1000, call.perform)
    timer.daemon = True
    timer.start()
    return Reply(None, body=b"", deliver=delivery.nothing_then_close)


# Answers to a request that was done. If it was refused, for instance as a duplicate, the refusal's text is left alone.


@misbehaviour(r"slow-(?P<milliseconds>\d+)")
def slow(call: Call, milliseconds: str) -> Reply:
    reply = call.perform()
    reply.deliver = delivery.after_milliseconds(int(milliseconds))
    return reply


@misbehaviour(r"together-(?P<number>[1-9]\d*)")
def together(call: Call, number: str) -> Reply:
    """A good answer, once so many requests that ask for this have arrived."""
    reply = call.perform()
    reply.deliver = delivery.together(int(number))
    return reply


@misbehaviour(r"stale")
def connection_goes_stale(call: Call) -> Reply:
    """A good answer, then the kept connection is closed without notice."""
    reply = call.perform()
    reply.deliver = delivery.whole_then_close
    return reply


@misbehaviour(r"huge-header")
def huge_header(call: Call) -> Reply:
    reply = call.perform()
    reply.headers.append(("X-Long", "a" * LONG_HEADER_LENGTH))
    return reply


@misbehaviour(r"half-body")
def half_body(call: Call) -> Reply:
    """Content-Length promises all of it."""
    reply = call.perform()
    if reply.succeeded():
        reply.deliver = delivery.half_of_body
    return reply


@misbehaviour(r"truncated")
def truncated(call: Call) -> Reply:
    """The JSON stops in the middle, while HTTP is content."""
    reply = call.perform()
    if reply.succeeded():
        reply.body = reply.payload()[: len(reply.payload()) // 2]
    return reply


@misbehaviour(r"nul")
def raw_nul(call: Call) -> Reply:
    return _with_bytes_in_role_name(call, b"\x00")


@misbehaviour(r"not-utf8")
def not_utf8(call: Call) -> Reply:
    return _with_bytes_in_role_name(call, "ä".encode("latin-1"))


@misbehaviour(r"escaped-nul")
def escaped_nul(call: Call) -> Reply:
    return _changed(call, lambda document: document.update(role_name="Mem\0ber"))


@misbehaviour(r"latin1")
def latin1_characters(call: Call) -> Reply:
    """UTF-8, but every character is in Latin-1."""
    return _changed(call, lambda document: document.update(role_name="Geschäftsführer"))


@misbehaviour(r"japanese")
def japanese(call: Call) -> Reply:
    metadata = {"部署": "営業部", "氏名": "山田 太郎"}
    return _changed(call, lambda document: document.update(role_name="メンバー", public_metadata=metadata))


@misbehaviour(r"minimal")
def only_what_is_certain(call: Call) -> Reply:
    """Clerk does not promise the other fields."""
    kept = ("id", "email_address", "role", "created_at", "updated_at")

    def reduce(document):
        for name in [name for name in document if name not in kept]:
            del document[name]

    return _changed(call, reduce)


@misbehaviour(r"extra")
def unknown_fields(call: Call) -> Reply:
    """Clerk adds fields without a new version."""
    extra = {"a_new_field": "new", "another": {"nested": [{"deeper": [1, None, True]}]}, "": None}
    return _changed(call, lambda document: document.update(extra))


@misbehaviour(r"odd-times")
def odd_times(call: Call) -> Reply:
    times = {
        "created_at": Number("99999999999999999999999999"),
        "updated_at": Number("1712345678901.75"),
        "expires_at": Number("1e400"),
    }
    return _changed(call, lambda document: document.update(times))


@misbehaviour(r"wrong-type-(?P<name>[a-z0-9_]+)")
def wrong_type(call: Call, name: str) -> Reply:
    """A number where a field was text, object or null; an object where it was a number."""
    reply = call.perform()
    if reply.succeeded():
        for document in [reply.document] if name in reply.document else _invitations(reply):
            document[name] = {"unexpected": "object"} if isinstance(document.get(name), int) else 42
    return reply


@misbehaviour(r"other-case")
def address_in_other_case(call: Call) -> Reply:
    """Clerk may fold the case of addresses (inferred): clients must not rely on getting back what they sent."""

    def fold(document):
        document["email_address"] = document["email_address"].swapcase()

    return _changed(call, fold)


@misbehaviour(r"left-out")
def left_out_of_the_list(call: Call) -> Reply:
    """All of a batch is created, but the answer's list lacks the address that asked for it."""
    reply = call.perform()
    if reply.succeeded() and "data" in reply.document:
        address, _ = first_choice(call)
        kept = [each for each in reply.document["data"] if each["email_address"] != address]
        reply.document.update(data=kept, total_count=len(kept))
    return reply


@misbehaviour(r"someone-else")
def someone_else_in_the_list(call: Call) -> Reply:
    """All of a batch is created, but the answer's list has another address in the place of each that asked."""
    reply = call.perform()
    if reply.succeeded():
        for document in _invitations(reply):
            if document["email_address"].startswith("x-someone-else"):
                document["email_address"] = "someone-else@example.com"
    return reply


@misbehaviour(r"twice")
def twice_in_the_list(call: Call) -> Reply:
    """The answer's list has the last invitation twice."""
    reply = call.perform()
    if reply.succeeded() and "data" in reply.document:
        documents = reply.document["data"] + reply.document["data"][-1:]
        reply.document.update(data=documents, total_count=len(documents))
    return reply


@misbehaviour(r"without-(?P<name>[a-z0-9_]+)")
def field_left_out(call: Call, name: str) -> Reply:
    return _changed(call, lambda document: document.pop(name, None))


# Pages of a list.


@misbehaviour(r"ties-reversed")
def ties_reversed(call: Call) -> Reply:
    """Invitations of the same time, which no order that can be asked for tells apart, come the other way round."""
    call.reverse_ties = True
    return call.perform()


@misbehaviour(r"first-page")
def first_page_again(call: Call) -> Reply:
    call.request.query.pop("offset", None)
    return call.perform()


@misbehaviour(r"page-of-(?P<limit>\d+)")
def smaller_page(call: Call, limit: str) -> Reply:
    """Fewer invitations than the limit that was asked for, although there are more."""
    call.request.query["limit"] = [limit]
    return call.perform()


@misbehaviour(r"any-order")
def any_order(call: Call) -> Reply:
    """The order that was asked for is ignored, as Clerk ignores what it does not know elsewhere."""
    call.request.query.pop("order_by", None)
    return call.perform()


@misbehaviour(r"echo-url")
def error_that_repeats_the_url(call: Call) -> Reply:
    """The invitation's url is a secret; no client may pass this on."""
    call.perform()
    urls = " ".join(invitation.url for invitation in call.created)
    reply = error_reply(500, "internal_clerk_error")
    reply.document["errors"][0]["long_message"] = "Could not send " + urls
    return reply


def error_reply(status: int, code: str, **fields) -> Reply:
    return Reply(status, {"errors": [error_object(code, **fields)]}, code=code)


def _invitations(reply: Reply) -> List[dict]:
    """The invitations in a successful reply, whether it is one or a list."""
    return reply.document.get("data", [reply.document])


def _changed(call: Call, change: Callable[[dict], None]) -> Reply:
    reply = call.perform()
    if reply.succeeded():
        for document in _invitations(reply):
            change(document)
    return reply


def _with_bytes_in_role_name(call: Call, smuggled: bytes) -> Reply:
    reply = _changed(call, lambda document: document.update(role_name=f"Mem{_MARK}ber"))
    if reply.succeeded():
        reply.body = json_text.encode(reply.document).replace(_MARK.encode(), smuggled)
    return reply
