"""The answer of a write that has nothing else to say."""

from pydantic import BaseModel


class Ok(BaseModel):
    ok: bool = True
