"""A WSGI application that takes orders: each is stored and shipped in one transaction, or neither.

Run it with any WSGI server, or `python -m docs.examples.orders_wsgi`; RUNWIRE_DATABASE_URL names
the database, in which `runwire migrate` and `create_table` have been.
"""

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

import psycopg

from runwire import task
from runwire.sync import tasks

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


@task(id="ship-order")
def ship(payload: dict[str, int]) -> str:
    return f"order {payload['order']} is on its way"


def create_table() -> None:
    """Make the table of the orders, unless it is there."""
    with psycopg.connect(os.environ["RUNWIRE_DATABASE_URL"]) as connection:
        connection.execute(
            "create table if not exists orders (id integer primary key, note text not null)"
        )


def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """POST /7 with a note orders number 7, once; the answer names the run that ships it."""
    order = int(environ["PATH_INFO"].strip("/"))
    note = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
    try:
        with psycopg.connect(os.environ["RUNWIRE_DATABASE_URL"]) as connection:
            handle = tasks.trigger("ship-order", {"order": order}, connection=connection)
            connection.execute("insert into orders (id, note) values (%s, %s)", (order, note))
    except psycopg.errors.UniqueViolation:
        return answer(start_response, "409 Conflict", {"error": f"{order} is ordered already"})
    return answer(start_response, "200 OK", {"run": handle.id})


def answer(start_response: "StartResponse", status: str, body: object) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


if __name__ == "__main__":
    create_table()
    make_server("127.0.0.1", 8000, application).serve_forever()
