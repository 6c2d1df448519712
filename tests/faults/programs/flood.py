"""Subscribes to distinct tags, and to one that very many runs carry, as fast as it goes, for ever.

python -m tests.faults.programs.flood URL KEY
"""

import sys

import anyio
from anyio.lowlevel import checkpoint
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.sockets import Socket, open_socket

FLOODS = 4


def say(word: str, code: int | None) -> None:
    sys.stdout.write(f"{word}: {code}\n")
    sys.stdout.flush()


async def read(socket: Socket) -> None:
    async for _ in socket.connection:
        pass


async def flood(url: str, key: str, number: int) -> None:
    count = 0
    while True:
        try:
            async with (
                open_socket(url, key, close_timeout=0.1) as socket,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(read, socket)
                while not tasks.cancel_scope.cancel_called:
                    count += 1
                    tag = "crowd" if count % 50 == 0 else f"{number}-{count}"
                    await socket.subscribe(f"s{count}", {"tags": [tag], "createdAt": "7d"})
                    await checkpoint()  # sending alone does not give way to the reader
        except* ConnectionClosed as closed:
            first = closed.exceptions[0]
            code = first.rcvd.code if isinstance(first, ConnectionClosed) and first.rcvd else None
            say("refused" if code in (None, 4008, 4029) else "unforeseen", code)
        except* InvalidStatus as refused:
            turned = refused.exceptions[0]
            code = turned.response.status_code if isinstance(turned, InvalidStatus) else 0
            say("refused" if code == 503 else "unforeseen", code)
            await anyio.sleep(0.1)  # at once, nearly


async def main() -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(FLOODS):
            tasks.start_soon(flood, sys.argv[1], sys.argv[2], number)


if __name__ == "__main__":
    anyio.run(main)
