"""Runwire inside a FastAPI application: one process, one port, your own routes beside it.

    RUNWIRE_DATABASE_URL=postgresql://… RUNWIRE_SECRET=… uvicorn fastapi_app:app

The pages of your application follow runs at /runwire/realtime/v1/socket with the token that /ask
hands out; a worker (`runwire worker MODULE…`) executes the tasks. Behind a parent application the
socket's limits are the parent server's: run uvicorn with `--ws websockets-sansio
--ws-per-message-deflate false --ws-max-size 65536`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from runwire import tasks
from runwire_realtime.mounted import runwire_app

runwire = runwire_app()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Start Runwire with the application. Without this it starts with the first request to it."""
    async with runwire.lifespan():
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/runwire", runwire)


@app.post("/ask")
async def ask(question: str) -> dict[str, str | None]:
    """Start a run and hand the browser what it needs to follow it."""
    handle = await tasks.trigger("ask", {"question": question})
    return {"run": handle.id, "token": handle.public_access_token}
