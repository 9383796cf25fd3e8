"""A server process that is killed under a query says nothing. PostgREST then answers 400 with an empty code, now and
then: what it said was recorded, and is said here again by somebody in its place.
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

RECORDED = b'{"code":"","details":null,"hint":null,"message":""}'


class Answerer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(400)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(RECORDED)))
        self.end_headers()
        self.wfile.write(RECORDED)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def in_place_of_postgrest(stack: RunningStack) -> Iterator[None]:
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


def test_a_backend_killed_under_a_query_is_no_fault_of_the_client(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as stack:
        owner = make_organization(stack.database)["owner"]
        with in_place_of_postgrest(stack), stack.client(owner.subject) as client:
            assert_problem(client.get("/api/v1/cases"), 503, "DATABASE_UNAVAILABLE")
