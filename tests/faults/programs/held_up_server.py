"""A server whose event loop is held up for two seconds whenever it gets SIGUSR1.

python -m tests.faults.programs.held_up_server PORT
"""

import asyncio
import signal
import sys
import time

from runwire_realtime.server import run_server
from runwire_realtime.settings import read_settings

SECONDS = 2.0


def hold_up() -> None:
    time.sleep(SECONDS)


async def main() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, hold_up)
    await run_server(read_settings(port=int(sys.argv[1])), print)


if __name__ == "__main__":
    asyncio.run(main())
