"""Triggers one key over many connections at once; prints a line with run and is_cached for each.

Every connection waits in Postgres until the test lets go of the gate.
"""

import os
import sys
import threading

import psycopg

from runwire.sync import tasks

GATE = 4242


def one() -> None:
    with psycopg.connect(os.environ["RUNWIRE_DATABASE_URL"]) as connection:
        connection.execute("select pg_advisory_xact_lock_shared(%s)", (GATE,))
        handle = tasks.trigger("plain", connection=connection, idempotency_key="one key")
        connection.commit()
        print(handle.id, handle.is_cached, flush=True)  # noqa: T201 -- what the test reads


if __name__ == "__main__":
    threads = [threading.Thread(target=one) for _ in range(int(sys.argv[1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
