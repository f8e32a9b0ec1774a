"""A server on the loopback that speaks Ollama's and OpenAI's protocols over a tiny real model, and fails when told to.

It keeps what it was asked, so that tests can look at what really went over the wire.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from tiny_checkpoint import as_model

from sizewise.load.checkpoint import encoder
from sizewise.load.checkpoint.causal import Causal
from sizewise.load.checkpoint.weights import load

KEY = "sk-loopback-secret"
MODEL = "tiny:latest"
_DEFAULTS = {"max_tokens": 16, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}


class ProtocolServer:
    """Routes, the model behind them, and the faults that come next."""

    def __init__(self, causal_folder: Path, encoder_folder: Path, *, needs_key: bool = False) -> None:
        self.needs_key = needs_key
        self.faults: deque[str | Response] = deque()  # taken one for each request, first come first served
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.capabilities: list[str] = ["completion", "embedding"]
        files = {name: str(path) for name, path in as_model(causal_folder).files.items()}
        loaded = load("tiny", "checkpoint", files, dtype="float32", device="cpu", context=None, parameters=None)
        self.causal = Causal(loaded.model, loaded.tokenizer, 512, lambda done, total: None, lambda: None)
        files = {name: str(path) for name, path in as_model(encoder_folder).files.items()}
        self.encoder = load("bert", "encoder", files, dtype="float32", device="cpu", context=None, parameters=None)
        self.lock = threading.Lock()
        self.address = ""

    def app(self) -> Starlette:
        answers = {
            "/api/chat": self.ollama_answer,
            "/api/generate": self.ollama_answer,
            "/api/show": self.ollama_show,
            "/api/embed": self.ollama_embed,
            "/api/tags": self.ollama_tags,
            "/v1/chat/completions": self.openai_answer,
            "/v1/completions": self.openai_answer,
            "/v1/embeddings": self.openai_embed,
            "/v1/models": self.openai_models,
        }

        async def enter(request: Request) -> Response:
            text = await request.body()
            body = json.loads(text) if text else {}
            self.asked.append((request.url.path, body))
            self.headers.append(dict(request.headers))
            fault = self.faults.popleft() if self.faults else ""
            if isinstance(fault, Response):
                return fault
            if fault == "slow":
                await asyncio.sleep(3)
            if self.needs_key and request.headers.get("authorization") != f"Bearer {KEY}":
                sent = request.headers.get("authorization", "nothing")
                return JSONResponse({"error": {"message": f"wrong key, got {sent}"}}, 401)
            if body and body.get("model") not in (MODEL, "tiny", "tiny-reasoning"):
                return JSONResponse({"error": {"message": f"model {body.get('model')!r} not found"}}, 404)
            return await answers[request.url.path](body, fault)

        return Starlette(routes=[Route(path, enter, methods=["GET", "POST"]) for path in answers])

    def generate(self, body: dict[str, Any], options: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """Pieces and the reply, of the tiny model itself."""
        turns = "".join(f"<s>{turn['role']}: {turn['content']}\n" for turn in body.get("messages", ()))
        text = body.get("prompt") or turns + "assistant:"
        sampling = {**_DEFAULTS, "seed": 0, "stop": (), **options}
        pieces: list[str] = []
        with self.lock:
            asked = [{"text": text, "sampling": sampling}]
            reply = self.causal.generate(asked, 1, lambda at, piece: pieces.append(piece))[0]
        return pieces, reply

    async def ollama_answer(self, body: dict[str, Any], fault: str) -> Response:
        options = dict(body["options"])
        options["max_tokens"] = options.pop("num_predict")
        pieces, reply = self.generate(body, options)

        def line(text: str, **more: Any) -> str:
            said = {"response": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
            return json.dumps({"model": MODEL, "done": False, **said, **more}) + "\n"

        counts = {"prompt_eval_count": reply["prompt_tokens"], "eval_count": reply["completion_tokens"]}
        last = line("", done=True, done_reason=reply["finish"], **counts)
        error = json.dumps({"error": "the engine fell over"}) + "\n"
        return StreamingResponse(_cut([*map(line, pieces), last], fault, error), media_type="application/x-ndjson")

    async def openai_answer(self, body: dict[str, Any], fault: str) -> Response:
        if body.get("echo"):
            return JSONResponse({"choices": [self.echo(body["prompt"])]})
        if body["model"] == "tiny-reasoning" and "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return JSONResponse({"error": {"message": message}}, 400)
        options: dict[str, Any] = {
            key: body[key] for key in ("temperature", "top_p", "top_k", "seed", "stop") if key in body
        }
        options["max_tokens"] = body.get("max_tokens") or body["max_completion_tokens"]
        pieces, reply = self.generate(body, options)

        def line(text: str, finish: str | None = None) -> str:
            said = {"text": text} if "prompt" in body else {"delta": {"content": text}}
            return "data: " + json.dumps({"choices": [{"index": 0, "finish_reason": finish, **said}]}) + "\n\n"

        usage = {"prompt_tokens": reply["prompt_tokens"], "completion_tokens": reply["completion_tokens"]}
        lines = [": a comment\n\n", *map(line, pieces), line("", reply["finish"])]
        lines += ["data: " + json.dumps({"choices": [], "usage": usage}) + "\n\n", "data: [DONE]\n\n"]
        error = "data: " + json.dumps({"error": {"message": "the engine fell over"}}) + "\n\n"
        return StreamingResponse(_cut(lines, fault, error), media_type="text/event-stream")

    def echo(self, text: str) -> dict[str, Any]:
        """Log-probabilities of each token of the text, as servers with `echo` tell them, and one token more."""
        import torch

        tokenizer = self.causal.tokenizer
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, places = read["input_ids"], read["offset_mapping"]
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": [], "top_logprobs": []}
        for at, token in enumerate(ids):
            with torch.inference_mode():
                row = self.causal.model(input_ids=torch.tensor([[1, *ids[:at]]])).logits[0, -1].log_softmax(-1)
            best = int(row.argmax())
            told["tokens"].append(text[places[at][0] : places[at][1]])
            told["token_logprobs"].append(float(row[token]))
            told["text_offset"].append(places[at][0])
            told["top_logprobs"].append({tokenizer.decode([best]): float(row[best])})
        for key, value in (("tokens", "!"), ("token_logprobs", -1.0), ("text_offset", len(text)), ("top_logprobs", {})):
            told[key].append(value)
        return {"text": text + "!", "logprobs": told, "finish_reason": "length"}

    async def ollama_show(self, body: dict[str, Any], fault: str) -> Response:
        return JSONResponse({"model_info": {}, "capabilities": self.capabilities})

    async def ollama_tags(self, body: dict[str, Any], fault: str) -> Response:
        return JSONResponse({"models": [{"name": MODEL, "model": MODEL}]})

    async def openai_models(self, body: dict[str, Any], fault: str) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def ollama_embed(self, body: dict[str, Any], fault: str) -> Response:
        return JSONResponse({"embeddings": [[3 * x for x in vector] for vector in self.embed(body["input"])]})

    async def openai_embed(self, body: dict[str, Any], fault: str) -> Response:
        rows = [{"index": at, "embedding": vector} for at, vector in enumerate(self.embed(body["input"]))]
        return JSONResponse({"data": rows[::-1]})  # the order is in `index`, nowhere else

    def embed(self, texts: list[str]) -> list[list[float]]:
        model, tokenizer = self.encoder.model, self.encoder.tokenizer
        with self.lock:
            found = encoder.embed(model, tokenizer, texts, max_length=16, pooling="mean_tokens", step=lambda done: None)
        rows: list[list[float]] = found.tolist()
        return rows


async def _cut(lines: list[str], fault: str, error: str) -> AsyncIterator[str]:
    for at, line in enumerate(lines):
        if at == 3 and fault == "cut":
            raise ConnectionAbortedError("the test wants this connection to break")
        if at == 3 and fault == "end":
            return
        if at == 3 and fault == "error":
            yield error
            return
        if at == 3 and fault == "garbage":
            yield "<html>proxy error</html>\n"
        yield line
        await asyncio.sleep(0)


def plain(text: str, status: int = 200, **headers: str) -> Response:
    """A response that some proxy in between might give."""
    return PlainTextResponse(text, status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@contextmanager
def serve(server: ProtocolServer) -> Iterator[str]:
    """Run the server in a thread of this process. Gives its address."""
    config = uvicorn.Config(server.app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()
