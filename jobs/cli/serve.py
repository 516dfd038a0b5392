"""`mimbench serve`: the runs in a browser, live and read-only; by default for this machine alone.

Python's http.server answers GET and HEAD with the pages of jobs/tables/live.py. They have no scripts and load nothing
from elsewhere. Requests for another host name are refused, so that no web page reads the runs
by way of the browser.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mimbench.jobs.tables import live

HERE = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    """Serves the runs under a root."""

    daemon_threads = True

    def __init__(self, root: Path, host: str, port: int) -> None:
        self.root = root
        everywhere = host in ("", "0.0.0.0", "::")
        self.names = None if everywhere else {host, *(HERE if host in HERE else ())}
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a browser closes early; anything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "mimbench", ""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        url = urlsplit(self.path)
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.names is not None and host not in self.server.names:
            answer = live.Page(403, "text/plain", b"This server answers only to its own name.\n")
        else:
            try:
                answer = live.page(unquote(url.path), dict(parse_qsl(url.query)), self.server.root)
            except (ValueError, OSError) as error:
                answer = live.Page(500, "text/plain; charset=utf-8", f"{error}\n".encode())
        self.send_response(answer.code)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if body:
            self.wfile.write(answer.content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Print nothing for each request."""


def serve(root: Path, host: str, port: int) -> None:
    """Serve the runs under `root` until Ctrl-C.

    Raises:
        OSError: if the port is taken.
    """
    try:
        server = Server(root, host, port)
    except OSError as error:
        raise OSError(f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port") from None
    with server:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        if server.names is None:
            print("note: everybody who reaches this machine can read the runs", file=sys.stderr)
        server.serve_forever()
