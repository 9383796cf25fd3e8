"""An identity provider for tests: keys of its own, a JWKS over HTTP, tokens signed with any of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

Jwk = dict[str, Any]
_CURVES: dict[str, type[Any]] = {"ES256": SECP256R1, "ES384": SECP384R1, "ES512": SECP521R1}


@dataclass(frozen=True)
class SigningKey:
    id: str | None
    algorithm: str
    private: Any = field(repr=False)

    def jwk(self, **changes: object) -> Jwk:
        """The public half as it is published. A member that is None is left out."""
        public = self.private.public_key()
        if self.algorithm == "EdDSA":
            made = OKPAlgorithm.to_jwk(public, as_dict=True)
        elif self.algorithm in _CURVES:
            made = ECAlgorithm.to_jwk(public, as_dict=True)
        else:
            made = RSAAlgorithm.to_jwk(public, as_dict=True)
        made.pop("key_ops", None)
        found = {**made, "kid": self.id, "use": "sig", **changes}
        return {name: value for name, value in found.items() if value is not None}

    def token(self, subject: str | None, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token of a person. A claim that is None is left out."""
        now = int(time.time())
        everything = {"sub": subject, "iat": now, "exp": now + 3600, **claims}
        payload = {name: value for name, value in everything.items() if value is not None}
        headers = ({"kid": self.id} if self.id is not None else {}) | (header or {})
        return jwt.encode(payload, self.private, algorithm=self.algorithm, headers=headers)


@cache
def signing_key(algorithm: str = "ES256", key_id: str | None = None, *, bits: int = 2048) -> SigningKey:
    """The same one for the same arguments: RSA keys take long to make."""
    if algorithm == "EdDSA":
        return SigningKey(key_id, algorithm, Ed25519PrivateKey.generate())
    if algorithm in _CURVES:
        return SigningKey(key_id, algorithm, generate_ec_key(_CURVES[algorithm]()))
    return SigningKey(key_id, algorithm, generate_rsa_key(65537, bits))


def key_set(*keys: SigningKey | Jwk) -> bytes:
    return json.dumps({"keys": [key.jwk() if isinstance(key, SigningKey) else key for key in keys]}).encode()


@dataclass
class KeyServer:
    """Serves `document` at `url`, and counts who asks."""

    url: str
    document: bytes
    status: int = 200
    location: str | None = None
    requests: int = 0


@contextmanager
def key_server(document: bytes, port: int = 0) -> Iterator[KeyServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests += 1
            self.send_response(served.status)
            if served.location is not None:
                self.send_header("Location", served.location)
            self.send_header("Content-Length", str(len(served.document)))
            self.end_headers()
            self.wfile.write(served.document)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        served = KeyServer(f"http://127.0.0.1:{server.server_port}/jwks.json", document)
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
