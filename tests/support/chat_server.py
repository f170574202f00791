"""A chat server on loopback that answers, and misbehaves, as a script tells it.

    with ScriptedChatServer([Step(status=429, headers={"Retry-After": "2"}), "fine"]) as server:
        Model(server.url, "scripted", sleep=waits.append).ask([Message.of("user", "how are you?")])
        server.requests[0].json["messages"]

A step is a text (the model's answer), a dict (the JSON body as it is), or a `Step`. A function of the `Received` request
that returns one of these is a script without end; a list that has run out answers 500.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Step:
    """One reply. text: what the model says; body: the bytes instead. delay: seconds before. drop: hang up instead.

    drip: seconds between single bytes of the body. cut: promise the whole body, send this many bytes, hang up.
    """

    text: str | list[Any] | None = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    drop: bool = False
    drip: float = 0.0
    cut: int | None = None
    finish_reason: str = "stop"
    message: Mapping[str, Any] = field(default_factory=dict)  # further fields of the message, e.g. refusal
    logprobs: Any = None

    def encoded(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": f"scripted {self.status}"}}).encode()
        return json.dumps(reply(self.text, self.finish_reason, self.message, self.logprobs)).encode()


def reply(
    text: Any, finish_reason: str = "stop", message: Mapping[str, Any] | None = None, logprobs: Any = None
) -> dict[str, Any]:
    """The JSON body of a good answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **(message or {})},
        "finish_reason": finish_reason,
        "logprobs": logprobs,
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return {"id": "x", "object": "chat.completion", "model": "scripted-1", "choices": [choice], "usage": usage}


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    path: str
    headers: Mapping[str, str]  # names in lower case
    json: Any

    @property
    def texts(self) -> list[str]:
        """All texts of all messages in order."""
        return [text for message in self.json["messages"] for text in _texts(message["content"])]

    @property
    def pictures(self) -> list[tuple[str, Image.Image]]:
        """(MIME type, decoded picture) of all messages in order."""
        found = []
        for message in self.json["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image_url":
                    head, _, data = part["image_url"]["url"].partition(",")
                    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
                    picture.load()
                    found.append((head.removeprefix("data:").removesuffix(";base64"), picture))
        return found


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]


Reply = str | dict[str, Any] | Step


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients under test hang up, which is no error of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class ScriptedChatServer:
    """Context manager. url: the base URL, ending in /v1. requests: all that came in. most_at_once: requests in flight."""

    def __init__(self, script: Sequence[Reply] | Callable[[Received], Reply]) -> None:
        self._steps = list(script) if not callable(script) else None
        self._function = script if callable(script) else None
        self._lock = threading.Lock()
        self._in_flight = 0
        self._stopping = threading.Event()
        self.requests: list[Received] = []
        self.most_at_once = 0
        handler = type("Handler", (_Handler,), {"script": self})
        self._server = Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ScriptedChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, request: Received) -> Step:
        with self._lock:
            self.requests.append(request)
            step: Reply
            if self._steps is not None:
                step = self._steps.pop(0) if self._steps else Step(status=500)
        if self._function is not None:
            step = self._function(request)
        if isinstance(step, str):
            return Step(step)
        return Step(body=json.dumps(step).encode()) if isinstance(step, dict) else step

    def _count(self, change: int) -> None:
        with self._lock:
            self._in_flight += change
            self.most_at_once = max(self.most_at_once, self._in_flight)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5  # seconds an idle connection is kept
    script: ScriptedChatServer

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.script._count(1)
        try:
            step = self.script._next(Received(self.path, headers, json.loads(body)))
            self.script._stopping.wait(step.delay)
        finally:
            self.script._count(-1)
        if step.drop:
            self.close_connection = True
            return
        try:
            self._answer(step)
        except OSError:  # the client has hung up
            self.close_connection = True

    def do_GET(self) -> None:  # a client that turns a redirected POST into a GET is seen in `requests`
        with self.script._lock:
            self.script.requests.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, None))
        self.send_error(405)

    def _answer(self, step: Step) -> None:
        data = step.encoded()
        self.send_response(step.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **step.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if step.cut is not None:
            self.wfile.write(data[: step.cut])
            self.close_connection = True
        elif step.drip:
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                self.wfile.flush()
                time.sleep(step.drip)
        else:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
