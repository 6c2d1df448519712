"""What schemathesis must be taught for our description: how NDJSON is written."""

import orjson
import schemathesis
from schemathesis import SerializationContext


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: SerializationContext, value: object) -> bytes:
    """Write a value as the one line of a body."""
    return orjson.dumps(value, default=str) + b"\n"
