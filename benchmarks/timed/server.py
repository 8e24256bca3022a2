"""A chat server on loopback that answers every call after a fixed time, whatever the load.

    python -m benchmarks.timed.server [--latency-ms 50]     prints its base URL

So what a client takes beyond latency x waves of calls is its own. `GET /stats` tells calls,
connections and the most calls in flight since `POST /reset`. A reply depends on its request alone,
differs from request to request, and can be parsed by every system that is compared. On bare
asyncio, as the server shares the cores with the client that is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import zlib
from typing import Any


class Counts:
    """What was seen since the last reset."""

    def __init__(self) -> None:
        self.calls = self.in_flight = self.max_in_flight = 0
        self.used: set[asyncio.Protocol] = set()

    def begin(self, connection: asyncio.Protocol) -> None:
        """A call came in."""
        self.calls += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.used.add(connection)

    def json(self) -> bytes:
        """The counts, for a client."""
        return json.dumps(
            {
                "calls": self.calls,
                "connections": len(self.used),
                "max_in_flight": self.max_in_flight,
            }
        ).encode()


class Chat(asyncio.Protocol):
    """One connection."""

    def __init__(self, latency: float, counts: Counts) -> None:
        self.latency = latency
        self.counts = counts
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, _, fields = self.buffer[:end].lower().partition(b"\r\n")
            _, found, length = fields.partition(b"content-length:")
            stop = end + 4 + (int(length.partition(b"\r\n")[0]) if found else 0)
            if len(self.buffer) < stop:
                return
            body, self.buffer = self.buffer[end + 4 : stop], self.buffer[stop:]
            self.take(head.split(b" ")[1], body)

    def take(self, path: bytes, body: bytes) -> None:
        """One request."""
        if path == b"/stats":
            return self.send(self.counts.json())
        if path == b"/reset":
            self.counts.__init__()  # type: ignore[misc]
            return self.send(b"{}")
        self.counts.begin(self)
        asyncio.get_running_loop().call_later(self.latency, self.answer, answer_to(body))

    def answer(self, body: bytes) -> None:
        """The reply to a call."""
        self.counts.in_flight -= 1
        self.send(body)

    def send(self, body: bytes) -> None:
        """An HTTP response."""
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )


def answer_to(raw: bytes) -> bytes:
    """A chat completion: JSON by the schema where there is one, else every system's tags."""
    request = json.loads(raw)
    number = zlib.crc32(json.dumps(request["messages"]).encode())
    words = f"Be more precise, case {number}."
    schema = (request.get("response_format") or {}).get("json_schema", {}).get("schema")
    if schema:
        text = json.dumps(
            {
                name: 0.5 if kind["type"] == "number" else words
                for name, kind in schema["properties"].items()
            }
        )
    else:
        text = (
            f"<IMPROVED_VARIABLE>{words}</IMPROVED_VARIABLE>\n"
            f"[[ ## answer ## ]]\n{words}\n\n[[ ## completed ## ]]"
        )
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "chat",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
        }
    ).encode()


async def serve(latency: float) -> None:
    """Serves until the process is ended."""
    counts = Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Chat(latency, counts), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=50)
    asyncio.run(serve(parser.parse_args().latency_ms / 1000))


if __name__ == "__main__":
    main()
