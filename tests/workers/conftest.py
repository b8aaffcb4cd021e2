"""A judge that is real: an HTTP server around a tiny model, speaking OpenAI's chat completions."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest

from workers.engine import Request
from workers.prompts import load_tokenizer
from workers.transformers_engine import TransformersEngine

MODEL = "alpha"
GRADES = [json.dumps({"reason": "so it is", "grade": n}) for n in range(1, 11)]
WINNERS = [json.dumps({"reason": "so it is", "winner": w}) for w in ("A", "B", "tie")]


class TinyJudge:
    """Chooses the likeliest of the answers that are allowed, as servers with guided decoding do."""

    def __init__(self, models: Path) -> None:
        path = models / MODEL
        self._tokenizer = load_tokenizer(path)
        self._engine = TransformersEngine(path, self._tokenizer, dtype="float32", device="cpu")
        self._lock = Lock()

    def answer(self, text: str) -> str:
        """One of the grades, or of the winners, each of which is one word of the tiny model."""
        allowed = WINNERS if "winner" in text else GRADES
        prompt = tuple(self._tokenizer.encode(text, add_special_tokens=False))[-50:]
        words = self._tokenizer.convert_tokens_to_ids([f"w{i}" for i in range(len(allowed))])
        with self._lock:
            found = self._engine.loglikelihood(tuple(Request(prompt=prompt, continuation=(w,)) for w in words))
        return allowed[max(range(len(allowed)), key=lambda i: found[i].total)]


Mood = Callable[["Handler"], None]


@dataclass
class JudgeServer:
    """Where it is, what it has been asked, and the mood it is in: one for each call to come, then the model itself."""

    url: str
    judge: TinyJudge
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    moods: list[Mood] = field(default_factory=list)
    always: Mood | None = None


class Handler(BaseHTTPRequestHandler):
    """Answers one call."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        state: JudgeServer = self.server.state
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.asked.append(payload)
        state.headers.append(dict(self.headers))
        state.times.append(time.monotonic())
        mood = state.moods.pop(0) if state.moods else state.always
        try:
            if self.path != "/v1/chat/completions":
                self.send(404, b"{}")
            elif mood is not None:
                mood(self)
            else:
                self.say(state.judge.answer(payload["messages"][-1]["content"]))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def say(self, text: str) -> None:
        """A chat completion."""
        body = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
        self.send(200, json.dumps(body).encode())

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        """Any reply."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Does not mind whoever hangs up."""

    daemon_threads = True
    state: JudgeServer

    def handle_error(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def tiny_judge(models: Path) -> TinyJudge:
    return TinyJudge(models)


@pytest.fixture
def judge_server(tiny_judge: TinyJudge) -> Iterator[JudgeServer]:
    """A server on a free port of this machine."""
    server = Server(("127.0.0.1", 0), Handler)
    state = JudgeServer(url=f"http://127.0.0.1:{server.server_address[1]}/v1", judge=tiny_judge)
    server.state = state
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
