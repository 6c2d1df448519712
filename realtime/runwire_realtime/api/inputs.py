"""Input of a run over HTTP: what a person or a program tells it while it executes."""

from typing import Final

from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from runwire._stream_keys import input_key
from runwire.values import encode
from runwire.wire import MAX_CHUNK_BYTES, Json
from runwire_engine.streams import Append
from runwire_realtime.api.answer import answer
from runwire_realtime.api.call import Call
from runwire_realtime.api.ok import Ok
from runwire_realtime.api.operation import Operation
from runwire_realtime.api.run_access import run_for_input
from runwire_realtime.api.streams import part_of

# Who sent it, as readers of the stream are told.
_WRITER: Final = "api"


class InputBody(BaseModel):
    """What is sent: any JSON value, of at most 1 MiB; nothing is null."""

    model_config = ConfigDict(extra="ignore")

    data: Json = None


async def send(call: Call) -> Response:
    """Send one value to an input stream of a run that is not over; it need not have begun."""
    row = await run_for_input(call)
    key = input_key(call.id("key"))
    body = await call.body(InputBody)
    await call.services.engine.streams.append(
        call.environment_id,
        Append(
            run_id=row.id,
            key=key,
            bodies=(encode(body.data, what="input", limit=MAX_CHUNK_BYTES),),
            writer=_WRITER,
            part=part_of(call),
            reserved=True,
        ),
    )
    return answer(Ok())


OPERATIONS: Final = (
    Operation(
        "POST",
        "/realtime/v1/streams/{runId}/input/{key:path}",
        "sendInput",
        "Send to an input stream of a run",
        send,
        Ok,
        scopes="write:inputStreams:<runId>, write:runs:<runId>",
        body=InputBody,
        errors=(404, 408, 413, 415, 422),
    ),
)
