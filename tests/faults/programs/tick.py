"""Makes the runs of schedules that are due, as a server does, until it is killed.

python tests/faults/programs/tick.py      (RUNWIRE_DATABASE_URL)
"""

import anyio

from runwire_engine.engine import open_engine
from runwire_engine.settings import EngineSettings


async def main() -> None:
    async with open_engine(EngineSettings(), sweeping=False, ticking=True):
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main)
