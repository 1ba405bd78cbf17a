"""Services that issue AWS credentials, on loopback: container endpoint, instance metadata, STS and SSO.

The server runs in threads, because botocore, the oracle, blocks.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROLE_ARN = "arn:aws:iam::123456789012:role/fake"


class CredentialServices:
    """All four services behind one port.

    Attributes:
        lifetime: seconds until issued credentials expire.
        rotate: whether each answer has new keys; otherwise they and their expiry stay the same.
        failing: whether everything is answered with status 500.
        requests: method, path and parameters of every request.
        arrived: set when a request comes.
        gate: requests wait until it is set.
        abandoned: set when a client goes away while its request waits at the gate.
    """

    def __init__(self) -> None:
        self.lifetime = 3600.0
        self.rotate = False
        self.failing = False
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.arrived = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.abandoned = threading.Event()
        self._issued = 0
        self._born = datetime.now(UTC).replace(microsecond=0)
        self._lock = threading.Lock()
        services = self

        class Handler(_Handler):
            owner = services

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> CredentialServices:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def issue(self, kind: str) -> tuple[str, str, str, datetime]:
        with self._lock:
            self._issued += 1
            serial = self._issued if self.rotate else 0
            born = datetime.now(UTC) if self.rotate else self._born
        # A millisecond more each time: a renewal can be told by its expiry.
        expiry = born + timedelta(seconds=self.lifetime, milliseconds=serial)
        return f"AKID{kind}{serial}", f"fake-secret-{kind}-{serial}", f"fake-token-{kind}-{serial}", expiry

    def answer(self, method: str, path: str, parameters: dict[str, str]) -> tuple[int, str, str]:
        """Status, content type and body."""
        if self.failing:
            return 500, "text/plain", "broken"
        action = parameters.get("Action")
        if action in ("AssumeRole", "AssumeRoleWithWebIdentity"):
            return 200, "text/xml", self._sts(action)
        if path == "/container":
            access, secret, token, expiry = self.issue("CONTAINER")
            return _json(AccessKeyId=access, SecretAccessKey=secret, Token=token, Expiration=_iso(expiry))
        if path == "/latest/api/token" and method == "PUT":
            return 200, "text/plain", "fake-metadata-token"
        if path == "/latest/meta-data/iam/security-credentials/":
            return 200, "text/plain", "fake-role"
        if path == "/latest/meta-data/iam/security-credentials/fake-role":
            access, secret, token, expiry = self.issue("INSTANCE")
            return _json(
                Code="Success", AccessKeyId=access, SecretAccessKey=secret, Token=token, Expiration=_iso(expiry)
            )
        if path == "/federation/credentials":
            access, secret, token, expiry = self.issue("SSO")
            milliseconds = int(expiry.timestamp() * 1000)
            keys = {"accessKeyId": access, "secretAccessKey": secret, "sessionToken": token, "expiration": milliseconds}
            return _json(roleCredentials=keys)
        return 404, "text/plain", "no such thing"

    def _sts(self, action: str) -> str:
        access, secret, token, expiry = self.issue("STS")
        return (
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>'
            f"<AccessKeyId>{access}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
            f"<SessionToken>{token}</SessionToken><Expiration>{_iso(expiry)}</Expiration></Credentials>"
            f"<AssumedRoleUser><AssumedRoleId>ID:s</AssumedRoleId><Arn>{ROLE_ARN}</Arn></AssumedRoleUser>"
            f"</{action}Result></{action}Response>"
        )


class _Handler(BaseHTTPRequestHandler):
    owner: CredentialServices
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        split = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parameters = {key: values[0] for key, values in parse_qs(f"{split.query}&{body}").items()}
        self.owner.requests.append((self.command, split.path, parameters))
        self.owner.arrived.set()
        if not self.owner.gate.is_set():
            self._wait_at_the_gate()
            return
        status, content_type, text = self.owner.answer(self.command, split.path, parameters)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = True

    def _wait_at_the_gate(self) -> None:
        """Hold the request until the client goes away; a client that stays is let go with the connection closed."""
        self.connection.settimeout(0.02)
        while not self.owner.gate.is_set():
            try:
                if self.connection.recv(1) == b"":
                    self.owner.abandoned.set()
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                self.owner.abandoned.set()
                break
        self.close_connection = True

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _json(**members: Any) -> tuple[int, str, str]:
    return 200, "application/json", json.dumps(members)
