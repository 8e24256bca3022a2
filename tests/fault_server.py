"""A chat server that misbehaves as told: each request takes the next step of a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Any  # a dict, or a function of the request's body that returns one


def answer(text: Any = "fine", finish_reason: Any = "stop", **message: Any) -> Step:
    """A step that answers as a chat server does."""
    return {
        "json": {
            "choices": [
                {
                    "message": {"role": "assistant", "content": text} | message,
                    "finish_reason": finish_reason,
                }
            ],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
        }
    }


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Step:
    """A step that fails as OpenAI's server does."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"message": message, "type": "error", "code": code}
    return {"status": status, "json": {"error": error}, "headers": names}


class Faults:
    """The running server: its `url`, the script that is left, and what it was sent."""

    def __init__(self, script: list[Step]) -> None:
        self.script = list(script)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def next_step(self, body: dict[str, Any], headers: dict[str, str]) -> Step:
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class QuietServer(ThreadingHTTPServer):
    """Says nothing of a client that has gone away, as it may."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on loopback, while it runs."""
    server = QuietServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def faults(*script: Step) -> Iterator[Faults]:
    """Serves the script; its last step repeats. Keys of a step: `status`, `headers`, `delay`
    (seconds), and `json`, `raw` (bytes) or `cut` (bytes, then the connection closes early), or
    `hang`."""
    state = Faults(list(script))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one flush

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            sent = json.loads(self.rfile.read(length))
            state.paths.append(self.path)
            step = state.next_step(sent, dict(self.headers))
            if callable(step):
                step = step(sent)
            state.over.wait(step.get("delay", 0.0))
            if step.get("hang"):
                state.over.wait(30)
                self.close_connection = True
                return
            if "cut" in step and not step["cut"]:
                self.close_connection = True
                return
            body = step.get("raw", step.get("cut", b""))
            if "json" in step:
                body = json.dumps(step["json"]).encode()
            self.send_response(step.get("status", 200))
            for name, value in step.get("headers", {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", step.get("type", "application/json"))
            self.send_header("Content-Length", str(len(body) + (1000 if "cut" in step else 0)))
            self.end_headers()
            self.wfile.write(body)
            if "cut" in step:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with running(Handler) as state.url:
        try:
            yield state
        finally:
            state.over.set()
