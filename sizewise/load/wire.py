"""The two wire formats that endpoints speak, as seen by a client: pure translations, no network.

A `Piece` is what one line of a streamed answer says. Sampling parameters that a format has no field for are sent under
their usual names when they are set, so that a server which does not know them can refuse instead of ignoring them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sizewise.core.errors import EngineFailed
from sizewise.core.requests import GenerateRequest, Sampling, Score


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer. What the line does not say is None."""

    text: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    end: bool = False  # nothing comes after it
    error: Any = None


class Dialect(Protocol):
    """How a kind of server is asked."""

    name: str
    key_variable: str
    models_path: str
    embed_path: str

    def ask(self, model: str, request: GenerateRequest, context: int | None) -> tuple[str, dict[str, Any]]:
        """Path and body that get a streamed answer."""
        ...

    def payload(self, line: str) -> str | None:
        """The JSON text in a line of the stream, or None where it holds none."""
        ...

    def read(self, line: dict[str, Any]) -> Piece:
        """What a line says."""
        ...

    def vectors(self, body: dict[str, Any]) -> list[list[float]]:
        """Embeddings, in the order of the texts."""
        ...

    def models(self, body: dict[str, Any]) -> list[str]:
        """Names of the models that the server lists."""
        ...


class OpenAI:
    """Chat completions, completions and embeddings."""

    name, key_variable = "openai", "OPENAI_API_KEY"
    models_path, embed_path = "/models", "/embeddings"

    def __init__(self) -> None:
        self.limit_key = "max_tokens"  # newer models want max_completion_tokens: learned from their refusal

    def ask(self, model: str, request: GenerateRequest, context: int | None) -> tuple[str, dict[str, Any]]:
        """See Dialect. This format has no field for the context."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for key, value, off in (
            ("stop", list(sampling.stop), []),
            ("top_k", sampling.top_k, 0),
            ("min_p", sampling.min_p, 0.0),
            ("repeat_penalty", sampling.repeat_penalty, 1.0),
        ):
            if value != off:
                body[key] = value
        if request.prompt is not None:
            return "/completions", {**body, "prompt": request.prompt, "max_tokens": sampling.max_tokens}
        return "/chat/completions", {**body, "messages": _turns(request), self.limit_key: sampling.max_tokens}

    def payload(self, line: str) -> str | None:
        """Server-sent events; a server that does not stream sends bare JSON."""
        if line.startswith("data:"):
            return line[5:].strip()
        return line if line.startswith("{") else None if line.startswith((":", "event:", "id:", "retry:")) else line

    def read(self, line: dict[str, Any]) -> Piece:
        """A chunk, or a whole answer from a server that does not stream."""
        if line.get("error"):
            return Piece(error=line["error"])
        choice = _first(line.get("choices"))
        message = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or (message.get("content") if isinstance(message, dict) else "")
        usage = line.get("usage") or {}
        return Piece(
            text=text if isinstance(text, str) else "",
            finish=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            end="message" in choice,
        )

    def vectors(self, body: dict[str, Any]) -> list[list[float]]:
        """`data`, sorted by its own index."""
        return [entry["embedding"] for entry in sorted(body["data"], key=lambda entry: entry["index"])]

    def models(self, body: dict[str, Any]) -> list[str]:
        """`data`'s ids."""
        return [str(entry["id"]) for entry in body["data"]]

    def echo(self, model: str, text: str) -> dict[str, Any]:
        """Body for `/completions` that makes a server tell how likely each token of `text` is."""
        return {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}


class Ollama:
    """Ollama's own interface: newline-delimited JSON."""

    name, key_variable = "ollama", "OLLAMA_API_KEY"
    models_path, embed_path = "/api/tags", "/api/embed"

    def ask(self, model: str, request: GenerateRequest, context: int | None) -> tuple[str, dict[str, Any]]:
        """See Dialect. All parameters are sent, for the server's own defaults differ; cutting is not wanted."""
        body = {"model": model, "stream": True, "truncate": False, "shift": False}
        body |= {"options": _ollama_options(request.sampling, context)}
        if request.prompt is not None:
            return "/api/generate", {**body, "prompt": request.prompt, "raw": True}
        return "/api/chat", {**body, "messages": _turns(request)}

    def payload(self, line: str) -> str | None:
        """Each line is JSON."""
        return line

    def read(self, line: dict[str, Any]) -> Piece:
        """A chunk; the last one has the counts."""
        if line.get("error"):
            return Piece(error=line["error"])
        message = line.get("message")
        text = message.get("content") if isinstance(message, dict) else line.get("response")
        done = bool(line.get("done"))
        return Piece(
            text=text if isinstance(text, str) else "",
            finish=str(line.get("done_reason") or "stop") if done else None,
            prompt_tokens=line.get("prompt_eval_count"),
            completion_tokens=line.get("eval_count"),
            end=done,
        )

    def vectors(self, body: dict[str, Any]) -> list[list[float]]:
        """`embeddings`."""
        vectors: list[list[float]] = body["embeddings"]
        return vectors

    def models(self, body: dict[str, Any]) -> list[str]:
        """`models`' names."""
        return [str(entry["name"]) for entry in body["models"]]


def read_echo(choice: dict[str, Any], prompt: str, continuation: str) -> Score:
    """The score of `continuation` from the echo of `prompt + continuation`.

    The token in which the prompt ends and the continuation begins counts for the continuation. Tokens after the text
    are the model's own.

    Raises:
        EngineFailed: the echo does not hold what its format promises.
    """
    begin, end = len(prompt), len(prompt) + len(continuation)
    total, count, greedy = 0.0, 0, True
    for token, at, logprob, others in _echoed(choice, prompt + continuation):
        if at + max(len(token), 1) > begin and at < end and logprob is not None:
            total, count = total + logprob, count + 1
            greedy = greedy and logprob >= max((others or {token: logprob}).values()) - 1e-9
    return Score(total, count, greedy)


def count_echo(choice: dict[str, Any], text: str) -> int:
    """The number of tokens in the echo of `text`, without BOS."""
    return sum(0 <= at < len(text) for _, at, _, _ in _echoed(choice, text))


def _echoed(choice: dict[str, Any], text: str) -> list[tuple[str, int, float | None, dict[str, float] | None]]:
    """(token, where it begins in `text`, log-probability, likeliest tokens) of each token."""
    try:
        told = choice["logprobs"]
        tokens, logprobs, offsets = told["tokens"], told["token_logprobs"], told["text_offset"]
        best = told.get("top_logprobs") or [None] * len(tokens)
        # a BOS in front is no part of the text; some servers count its name in the offsets
        lead = tokens[0] if len(tokens) > 1 and not text.startswith(tokens[0]) and tokens[0][:1] == "<" else ""
        shift = len(lead) if lead and offsets[1] == len(lead) else 0
        rows = list(zip(tokens, (at - shift for at in offsets), logprobs, best, strict=True))
        rows = [(str(token), int(at), None if p is None else float(p), top) for token, at, p, top in rows]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineFailed(
            f"the endpoint's echo has not its usual form ({error}): {json.dumps(choice)[:80]}"
        ) from error
    return rows[1:] if lead else rows


def _turns(request: GenerateRequest) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in request.messages]


def _ollama_options(sampling: Sampling, context: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
    }
    return {**options, "num_ctx": context} if context else options


def _first(choices: Sequence[Any] | None) -> dict[str, Any]:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
