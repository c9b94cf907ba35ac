"""Sockets, TLS and HTTP/1.1: one thread a connection, one write an answer."""

from __future__ import annotations

import http
import itertools
import secrets
import socket
import socketserver
import ssl
import struct
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Optional
from urllib.parse import parse_qs

from .api import Api, Instance
from .contract import ViolationLog
from .control import PREFIX, Control
from .http_types import Reply, Request
from .journal import Journal

LARGEST_READ = 64 * 1024 * 1024
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Wire:
    """What a delivery may do with the client's connection."""

    def __init__(self, handler: "Handler"):
        self._handler = handler

    def send(self, data: bytes):
        self._handler.wfile.write(data)

    def close(self):
        """Close the connection once the handler returns."""
        self._handler.close_connection = True

    def reset(self):
        """Close with a reset (RST) instead of an orderly end."""
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.close()

    def wait_until_gone(self):
        while self._handler.connection.recv(4096):
            pass


class Handler(BaseHTTPRequestHandler):
    """Reads requests off one connection and sends their replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self._number = next(self.server.connection_numbers)

    def answer_request(self):
        request = self._read_request()
        if request is None:
            self.close_connection = True
        elif request.path.startswith(PREFIX):
            self._send(self.server.control.answer(request), trace_id="")
        else:
            outcome = self.server.api.answer(request)
            self.server.journal.write(request, self.server.api.is_authorized(request), outcome)
            self.server.violations.write(request, outcome.violations)
            time.sleep(self.server.instance.settings.latency)
            self._send(outcome.reply, trace_id=secrets.token_hex(16))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = answer_request

    def log_message(self, format, *args):
        """The journal is the log."""

    def _read_request(self) -> Optional[Request]:
        """The whole request, or None if the client left in its middle or sends a body of unknown length."""
        arrived = int(time.time() * 1000)
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > LARGEST_READ:
            self.send_error(http.HTTPStatus.LENGTH_REQUIRED)
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return None
        path, _, query = self.path.partition("?")
        return Request(
            method=self.command,
            path=path,
            query=parse_qs(query, keep_blank_values=True),
            headers={name.lower(): ", ".join(self.headers.get_all(name)) for name in self.headers},
            body=body,
            connection=self._number,
            time=arrived,
        )

    def _send(self, reply: Reply, trace_id: str):
        if reply.status is None:
            reply.deliver(Wire(self), b"", b"")
            return
        _repeat_trace_id(reply, trace_id)
        payload = reply.payload()
        head = self._head(reply, len(payload), trace_id)
        reply.deliver(Wire(self), head, b"" if self.command == "HEAD" else payload)

    def _head(self, reply: Reply, payload_length: int, trace_id: str) -> bytes:
        length = payload_length if reply.content_length is None else reply.content_length
        tracing = {"x-clerk-trace-id": trace_id, "cf-ray": secrets.token_hex(8) + "-FRA"}
        headers = [
            ("Date", formatdate(self.server.instance.clock.seconds(), usegmt=True)),
            ("Content-Type", reply.content_type),
            ("Content-Length", str(length)),
        ]
        headers += [(name, tracing[name]) for name in reply.tracing]
        headers += reply.headers
        if self.close_connection:
            headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {reply.status} {_reason(reply.status)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _repeat_trace_id(reply: Reply, trace_id: str):
    """Clerk repeats the header's trace id in the body of an error."""
    document = reply.document
    if isinstance(document, dict) and "errors" in document and "x-clerk-trace-id" in reply.tracing:
        document["clerk_trace_id"] = trace_id


def _reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class FakeClerkServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """The listening socket and everything the connections share."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        host: str,
        port: int,
        instance: Instance,
        journal: Journal,
        violations: ViolationLog,
        tls: Optional[ssl.SSLContext],
    ):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.instance = instance
        self.journal = journal
        self.violations = violations
        self.api = Api(instance)
        self.control = Control(instance)
        self._tls = tls
        self.connection_numbers = itertools.count(1)
        super().__init__((host, port), Handler)

    def finish_request(self, request, client_address):
        """Serve one connection, in its own thread: a slow TLS handshake holds up nobody else."""
        connection = self._secured(request)
        try:
            super().finish_request(connection, client_address)
        finally:
            connection.close()

    def shutdown_request(self, request):
        """Only close: an orderly end first would turn a reset into something milder."""
        self.close_request(request)

    def handle_error(self, request, client_address):
        """A client may leave at any moment. Anything else is a mistake in this program, and worth a traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _secured(self, connection):
        if self._tls is None:
            return connection
        return self._tls.wrap_socket(connection, server_side=True)
