"""Sweeps, as every server does, until it is killed.

python tests/faults/programs/sweep.py      (RUNWIRE_DATABASE_URL, RUNWIRE_SWEEP)
"""

import anyio

from runwire_engine.engine import open_engine
from runwire_engine.settings import EngineSettings


async def main() -> None:
    async with open_engine(EngineSettings()):
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main)
