"""One authorised request: its grant, its parts checked and bounded, the services to answer it."""

from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Final, TypeVar, cast

import anyio
import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import Request

from runwire.values import decode
from runwire.wire import ErrorCode
from runwire_realtime.errors import NotFoundError, RefusedError
from runwire_realtime.scope import Grant
from runwire_realtime.services import Services

M = TypeVar("M", bound=BaseModel)

REQUEST_KEY_HEADER: Final = "x-trigger-request-idempotency-key"
# A body that trickles in holds a connection and memory; official clients send theirs in one go.
_BODY_TIMEOUT: Final = 30.0
# Larger bodies are checked in a thread: the walk over a few megabytes would stall every socket.
_CHECKED_INLINE: Final = 128 * 1024
_MAX_ID: Final = 128


class Call:
    """A request on its way to an answer."""

    def __init__(self, request: Request, services: Services, grant: Grant) -> None:
        self.request = request
        self.services = services
        self.grant = grant

    @property
    def environment_id(self) -> int:
        return self.grant.environment_id

    def id(self, name: str) -> str:
        """Return an id from the path. What no id can be is not found, like any unknown one."""
        value = cast(str, self.request.path_params[name])
        if not value or len(value) > _MAX_ID or not value.isprintable():
            raise NotFoundError("there is nothing by that id")
        return value

    def query(self, model: type[M]) -> M:
        """Return the query parameters as a model; one given twice is refused."""
        items = self.request.query_params.multi_items()
        if len(items) != len(dict(items)):
            raise RefusedError(ErrorCode.MALFORMED, "a query parameter is given twice")
        if any("\x00" in value for _, value in items):
            raise RefusedError(ErrorCode.MALFORMED, "a query parameter holds a NUL character")
        return model.model_validate(dict(items))

    def request_key(self, target: str) -> str | None:
        """Return the key that makes a repeated request the same: apart for each target."""
        key = self.request.headers.get(REQUEST_KEY_HEADER)
        if key is not None and not (1 <= len(key) <= 256 and key.isprintable()):
            raise RefusedError(
                ErrorCode.MALFORMED, f"{REQUEST_KEY_HEADER} must have 1 to 256 characters"
            )
        return None if key is None else sha256(f"{target}\0{key}".encode()).hexdigest()

    async def body(self, model: type[M]) -> M:
        """Return the JSON body as a model. Raises RefusedError when it is absent or not JSON."""
        text = await self.read()
        if not text.strip():
            raise RefusedError(ErrorCode.MALFORMED, "the request needs a JSON body")
        return await parsed(model, text)

    async def optional_body(self, model: type[M]) -> M:
        """Return the JSON body as a model, or the model's defaults when there is none."""
        text = await self.read()
        return await parsed(model, text if text.strip() else b"{}")

    async def read(self) -> bytes:
        """Return the whole body, bounded in size and time."""
        parts = [part async for part in self.parts(self.services.settings.max_request_bytes)]
        return b"".join(parts)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of an NDJSON body, empty ones left out."""
        rest = b""
        line_limit = self.services.settings.max_request_bytes
        async for part in self.parts(self.services.settings.max_batch_bytes):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line
            if len(rest) > line_limit:
                raise _too_large(line_limit)
        if rest.strip():
            yield rest

    async def parts(self, limit: int) -> AsyncIterator[bytes]:
        """Yield the body as it comes, refusing before reading what cannot be accepted."""
        _refuse_encoding(self.request.headers)
        if _announced_length(self.request.headers) > limit:
            raise _too_large(limit)
        size = 0
        is_whole = False
        while not is_whole:
            part, is_whole = await self._part()
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            if part:
                yield part

    async def _part(self) -> tuple[bytes, bool]:
        """Wait for a part of the body, and say whether it is the last.

        Not by the request's own stream: it yields twice more behind the last part, and each time
        under a timeout costs what the rest of a small body does.
        """
        try:
            with anyio.fail_after(_BODY_TIMEOUT):
                message = await self.request.receive()
        except TimeoutError:
            raise RefusedError(
                ErrorCode.MALFORMED, "the body did not come in time", status=408
            ) from None
        if message["type"] == "http.disconnect":
            raise RefusedError(ErrorCode.MALFORMED, "the body ended early")
        return message.get("body", b""), not message.get("more_body", False)


async def parsed(model: type[M], text: bytes, what: str = "body") -> M:
    """Return JSON text as a model: checked as everything stored is, and no type bent to fit."""

    def parse() -> M:
        decode(text, what=what)
        return model.model_validate_json(text, strict=True)

    if len(text) <= _CHECKED_INLINE:
        return parse()
    return await anyio.to_thread.run_sync(parse)


def _refuse_encoding(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(
            ErrorCode.MALFORMED,
            "send the body without Content-Encoding; compressed bodies are refused",
            status=415,
        )


def _announced_length(headers: Mapping[str, str]) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0


def _too_large(limit: int) -> RefusedError:
    return RefusedError(ErrorCode.TOO_LARGE, f"the body is larger than {limit} bytes")
