"""A token server for registries' clients: Docker Registry v2 authentication.

python -m tests.support.registries.token_server CERTIFICATE KEY, and user:password in TOKEN_USER;
prints its URL. The user with the password may do everything; others get 401.
"""

import base64
import json
import os
import ssl
import subprocess
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ISSUER = "tokens.test"

_SECONDS = 300


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class _Server(ThreadingHTTPServer):
    def __init__(self, certificate: Path, key: Path, user: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.authorization = "Basic " + base64.b64encode(user.encode()).decode()
        self._certificate = certificate
        self._key = key
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def token(self, audience: str, scopes: list[str]) -> str:
        """Return a JSON Web Token with the certificate, which the registry checks with the CA."""
        der = ssl.PEM_cert_to_DER_cert(self._certificate.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "tests",
            "aud": audience,
            "iat": now,
            "nbf": now - 10,
            "exp": now + _SECONDS,
            "jti": uuid.uuid4().hex,
            "access": [_access(scope) for scope in scopes],
        }
        signed = ".".join(_part(json.dumps(part).encode()) for part in (header, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        done = subprocess.run(sign, input=signed.encode(), check=True, capture_output=True)
        return f"{signed}.{_part(done.stdout)}"


def _access(scope: str) -> dict[str, Any]:
    resource_type, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return {"type": resource_type, "name": name, "actions": actions.split(",")}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.headers["Authorization"] != self.server.authorization:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        query = parse_qs(urlsplit(self.path).query)
        scopes = [scope for value in query.get("scope", []) for scope in value.split()]
        token = self.server.token(query["service"][0], scopes)
        answer = json.dumps({"token": token, "expires_in": _SECONDS}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        """Refuse POST (OAuth), after which clients use GET."""
        self.send_error(405)


def main() -> None:
    certificate, key = map(Path, sys.argv[1:])
    with _Server(certificate, key, os.environ["TOKEN_USER"]) as server:
        print(f"https://127.0.0.1:{server.server_port}/token", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
