"""What PostgREST says now and then when it has no connection, and no test can bring about at will: it was recorded, and
is said here again by somebody in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import urlsplit

from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack
from tests.observe import assert_problem

BACKEND_KILLED = 400, b'{"code":"","details":null,"hint":null,"message":""}'
NO_CONNECTION_IN_TIME = (
    504,
    b'{"code":"PGRST003","details":null,"hint":null,"message":"Timed out acquiring connection from connection pool."}',
)


@contextmanager
def in_place_of_postgrest(stack: RunningStack, status: int, body: bytes) -> Iterator[None]:
    class Answerer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    stack.stop("postgrest")
    address = urlsplit(stack.postgrest_url)
    with HTTPServer((str(address.hostname), address.port or 0), Answerer) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            yield
        finally:
            server.shutdown()
            serving.join()


def test_no_connection_is_the_database_away_and_no_fault_of_the_client(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as stack:
        owner = make_organization(stack.database)["owner"]
        for status, body in (BACKEND_KILLED, NO_CONNECTION_IN_TIME):
            with in_place_of_postgrest(stack, status, body), stack.client(owner.subject) as client:
                assert_problem(client.get("/api/v1/cases"), 503, "DATABASE_UNAVAILABLE")
