"""An HTTP server whose answers a test lays out one by one, and which keeps what it was asked."""

import json
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ScriptedHttp:
    url: str = ""
    # Answers still to give: status, body, headers. The last one is given again and again.
    answers: list[tuple[int, object, dict[str, str]]] = field(
        default_factory=list[tuple[int, object, dict[str, str]]]
    )
    asked: list[Asked] = field(default_factory=list[Asked])

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, body, named))

    def next(self) -> tuple[int, object, dict[str, str]]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def scripted_http() -> Generator[ScriptedHttp]:
    """Run the server on a port of its own."""
    script = ScriptedHttp()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.reply()

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append(Asked(self.command, unquote(self.path), headers, body))
            status, answer, more = script.next()
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**more, "content-length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(*words: str) -> bytes:
    """Return what an OpenAI-compatible endpoint streams."""
    chunks: list[object] = [
        {"index": 0, "delta": {"content": word}, "finish_reason": None} for word in words
    ]
    chunks.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    lines = [f"data: {json.dumps({**head, 'choices': [chunk]})}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()
