"""`python -m tests.autobahn`: every case against both sides. `… install`: only install it."""

import logging
import sys
import tempfile
import time
from pathlib import Path

import anyio

from tests.autobahn import suite
from tests.autobahn.cases import EVERYTHING, KNOWN_FAILURES
from tests.autobahn.installation import MISSING, install
from tests.autobahn.report import table


async def main() -> int:
    unknown: set[str] = set()
    for name, side in (("server", suite.run_on_server), ("client", suite.run_on_client)):
        with tempfile.TemporaryDirectory(prefix="runwire-autobahn-") as folder:
            began = time.monotonic()
            report = await side(EVERYTHING, Path(folder))
            print(f"{name} {table(report, time.monotonic() - began)}")
            unknown |= {f"{name} {case}" for case in set(report.failed) - KNOWN_FAILURES}
    return 1 if unknown else 0


logging.disable()  # uvicorn logs a traceback for each text that is none
if not install():
    sys.exit(MISSING)
if sys.argv[1:] != ["install"]:
    sys.exit(anyio.run(main))
