"""A few cases of each kind against both sides; all of them with `make autobahn`."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from tests.autobahn import suite
from tests.autobahn.cases import KNOWN_FAILURES, SAMPLE
from tests.autobahn.installation import is_installed
from tests.autobahn.report import Report

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.autobahn,
    pytest.mark.skipif(
        not is_installed(),
        reason="Autobahn|Testsuite is not in .runwire/autobahn: `make autobahn` installs it where"
        " there is a Python 2.7",
    ),
]
Side = Callable[[Sequence[str], Path], Awaitable[Report]]


@pytest.mark.parametrize(
    "side", [suite.run_on_server, suite.run_on_client], ids=["server", "client"]
)
async def test_the_websocket_of_both_sides_is_one(side: Side, tmp_path: Path) -> None:
    report = await side(SAMPLE, tmp_path)
    assert set(report.verdicts) == set(SAMPLE)
    assert set(report.failed) <= KNOWN_FAILURES, report.failed
