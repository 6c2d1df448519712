"""A small OpenAI-compatible endpoint that answers from this project's documentation.

It finds the passages that fit the question best (BM25 over the Markdown files of the checkout) and
streams them token by token, as a language model would. It is here so that `ask` works without a
key; it invents nothing, and each answer says where it comes from.
"""

import asyncio
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/**/*.md", "engine/README.md", "realtime/README.md", "clients/**/*.md")
SECONDS_PER_TOKEN = 0.03  # about the pace of a hosted model, so that there is something to watch
PASSAGES_PER_ANSWER = 3

_TOKEN = re.compile(r"[a-z0-9]+")
_PIECE = re.compile(r"\s*\S+|\s+")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_COMMON = frozenset(
    "a an and are as at be by can do does for from how i if in is it its my of on or so that the "
    "this to was what when where which who why will with you your".split()
)


@dataclass(frozen=True)
class Passage:
    """One paragraph, list or code block, under the headings above it."""

    page: str
    heading: str
    text: str
    terms: Counter[str]


class Message(BaseModel):
    role: str
    content: str


class CompletionRequest(BaseModel):
    """The part of OpenAI's request that matters here."""

    model: str = "docs"
    messages: list[Message]
    stream: bool = False


def terms(text: str) -> list[str]:
    """Return the words of a text that carry meaning, cut to their stems."""
    return [stem(word) for word in _TOKEN.findall(text.lower()) if word not in _COMMON]


def stem(word: str) -> str:
    """Return a word without its commonest English endings."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def split(page: str, text: str) -> Iterator[Passage]:
    """Yield the passages of one Markdown page: its prose, not its code and diagrams."""
    heading = page
    for block in re.split(r"\n\s*\n", _FENCED.sub("", text)):
        lines = block.strip()
        if lines.startswith("#"):
            first, _, lines = lines.partition("\n")
            heading = first.lstrip("# ").strip()
        if len(lines) > 40:
            # The heading counts twice: it says what the passage is about.
            counted = Counter(terms(f"{heading} {heading} {lines}"))
            yield Passage(page, heading, lines.strip(), counted)


@cache
def passages() -> tuple[Passage, ...]:
    """Return every passage of the documentation."""
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    return tuple(
        passage
        for path in pages
        if "node_modules" not in path.parts
        for passage in split(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    )


def fitting(question: str) -> list[Passage]:
    """Return the passages that fit a question, best first."""
    corpus = passages()
    wanted = set(terms(question))
    mean = sum(p.terms.total() for p in corpus) / max(1, len(corpus))
    found_in = {term: sum(term in p.terms for p in corpus) for term in wanted}

    def score(passage: Passage) -> float:
        total = 0.0
        for term in wanted & passage.terms.keys():
            rarity = math.log(1 + (len(corpus) - found_in[term] + 0.5) / (found_in[term] + 0.5))
            count = passage.terms[term]
            total += rarity * count * 2.2 / (count + 0.3 + 0.9 * passage.terms.total() / mean)
        return total

    ranked = sorted(corpus, key=score, reverse=True)
    return [passage for passage in ranked[:PASSAGES_PER_ANSWER] if score(passage) > 0]


def answer(question: str) -> str:
    """Return what the documentation says about a question."""
    found = fitting(question)
    if not found:
        return (
            "The documentation of this project says nothing about that. (No key is set, so only "
            "the documentation was asked.)"
        )
    parts = ["From the documentation of this project (no OPENAI_API_KEY is set):"]
    parts += [f"{p.text}\n\n— {p.page}, “{p.heading}”" for p in found]
    return "\n\n".join(parts)


async def completions(request: Request) -> Response:
    """POST /v1/chat/completions."""
    try:
        asked = CompletionRequest.model_validate_json(await request.body())
    except ValidationError as error:
        return JSONResponse({"error": {"message": str(error)}}, status_code=400)
    question = next((m.content for m in reversed(asked.messages) if m.role == "user"), "")
    text = answer(question)
    if not asked.stream:
        message = {"role": "assistant", "content": text}
        return JSONResponse(_completion("chat.completion", asked.model, "message", message, "stop"))
    return StreamingResponse(_stream(asked.model, text), media_type="text/event-stream")


async def _stream(model: str, text: str) -> AsyncIterator[str]:
    kind = "chat.completion.chunk"
    for piece in _PIECE.findall(text):
        yield _event(_completion(kind, model, "delta", {"content": piece}, None))
        await asyncio.sleep(SECONDS_PER_TOKEN)
    yield _event(_completion(kind, model, "delta", {}, "stop"))
    yield "data: [DONE]\n\n"


def _event(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _completion(
    kind: str, model: str, part: str, content: dict[str, str], finish: str | None
) -> dict[str, object]:
    choice = {"index": 0, part: content, "finish_reason": finish}
    created = int(time.time())
    return {"id": "docs", "object": kind, "created": created, "model": model, "choices": [choice]}


app = Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])

_starting = threading.Lock()
_started: list[uvicorn.Server] = []


def address() -> str:
    """Return the endpoint's address, starting it on a free loopback port on the first call."""
    with _starting:
        if not _started:
            config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
            server = uvicorn.Server(config)
            threading.Thread(target=server.run, name="docs-endpoint", daemon=True).start()
            while not server.started:
                time.sleep(0.01)
            _started.append(server)
    port = _started[0].servers[0].sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"
