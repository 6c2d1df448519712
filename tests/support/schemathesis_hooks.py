"""What schemathesis must be taught for our description: how NDJSON is written."""

import json

import schemathesis
from schemathesis import SerializationContext


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: SerializationContext, value: object) -> bytes:
    """Write a value as the one line of a body."""
    # Not orjson: what is made up holds integers of any size.
    return json.dumps(value, default=str).encode() + b"\n"
