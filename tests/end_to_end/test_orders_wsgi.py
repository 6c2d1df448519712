"""The WSGI example: an order and the run that ships it, in one transaction."""

import threading
from collections.abc import Generator
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import psycopg
import pytest

from docs.examples import orders_wsgi
from tests.support.working import opened_bench

pytestmark = pytest.mark.anyio


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """The application, served by a real WSGI server in a thread."""
    monkeypatch.setenv("RUNWIRE_DATABASE_URL", database_url)
    orders_wsgi.create_table()
    server = make_server("127.0.0.1", 0, orders_wsgi.application, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_an_order_is_shipped_exactly_if_it_is_stored(url: str, database_url: str) -> None:
    async with (
        opened_bench(database_url) as bench,
        bench.worker(orders_wsgi.ship),
        httpx.AsyncClient(base_url=url) as http,
    ):
        first = await http.post("/7", content="with care")
        second = await http.post("/7", content="again")
        assert (first.status_code, second.status_code) == (200, 409)
        row = await bench.until(first.json()["run"])
        assert row.output == '"order 7 is on its way"'
    with psycopg.connect(database_url) as connection:
        stored = connection.execute("select count(*), min(note) from orders").fetchone()
        runs = connection.execute("select count(*) from runwire.runs").fetchone()
    assert (stored, runs) == ((1, "with care"), (1,))
