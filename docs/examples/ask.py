"""Ask a question and watch the answer being written.

The task streams a chat completion through the official `openai` package, from any
OpenAI-compatible endpoint: set OPENAI_API_KEY, and OPENAI_BASE_URL for another one than OpenAI's.
Without a key it asks the small endpoint of `docs_endpoint.py`, which answers from this project's
own documentation, and says so.
"""

import os
from collections.abc import AsyncIterator

from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, Field

from docs.examples import docs_endpoint
from runwire import metadata, task

NO_KEY = "docs-of-this-project"


class Question(BaseModel):
    """What to ask."""

    question: str = Field("How do I resume a stream?", min_length=1, max_length=2000)
    model: str = Field(default_factory=lambda: os.environ.get("OPENAI_MODEL", "gpt-4o-mini"))


class Answer(BaseModel):
    """The whole text, and who wrote it."""

    text: str
    answered_by: str


def endpoint() -> tuple[str | None, str]:
    """Return the address (None: OpenAI's own) and the key of the endpoint to ask."""
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        return os.environ.get("OPENAI_BASE_URL"), key
    return docs_endpoint.address(), NO_KEY


async def words(completion: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str]:
    """Yield the text of a completion, piece by piece."""
    async for chunk in completion:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@task(id="ask", retry={"max_attempts": 3, "min_timeout": 0.5})
async def ask(payload: Question) -> Answer:
    """Answer a question; the text grows in the stream "answer"."""
    address, key = endpoint()
    answered_by = "this project's documentation" if key == NO_KEY else payload.model
    metadata.set("status", "asking").set("answeredBy", answered_by)
    async with AsyncOpenAI(base_url=address, api_key=key) as openai:
        completion = await openai.chat.completions.create(
            model=payload.model,
            messages=[{"role": "user", "content": payload.question}],
            stream=True,
        )
        metadata.set("status", "answering")
        text = ""
        async for word in await metadata.stream("answer", words(completion)):
            text += word
    metadata.set("status", "answered")
    return Answer(text=text, answered_by=answered_by)
