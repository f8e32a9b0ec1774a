"""Ollama's answers: the events of a session as the lines of a stream, or all of them as one object.

A line is built for every token, so the dictionaries are small and nothing is looked up twice. Counts and durations
stand in the last line only: LangChain adds them up over all lines.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sizewise.serve.job import Done, Piece, TokenLogprob, ToolCall

_LEAST = -9999.0  # of a log-probability: JSON has no infinity


class Answer:
    """One answer under way: makes its lines, and keeps what it said for the answer that is not streamed."""

    def __init__(self, kind: Literal["generate", "chat"], model: str, warnings: Sequence[str] = ()) -> None:
        self._chat, self._model = kind == "chat", model
        self._warnings = list(warnings)
        self._calls = 0

    def line(self, piece: Piece) -> dict[str, Any]:
        """A part of the answer."""
        body: dict[str, Any] = {"model": self._model, "created_at": now()}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": piece.text}
            if piece.thinking:
                message["thinking"] = piece.thinking
            if piece.tool_calls:
                message["tool_calls"] = self._tool_calls(piece.tool_calls)
            body["message"] = message
        else:
            body["response"] = piece.text
            if piece.thinking:
                body["thinking"] = piece.thinking
        body["done"] = False
        if piece.logprobs:
            body["logprobs"] = [_logprob(one) for one in piece.logprobs]
        return body

    def last(self, done: Done, *, total_s: float, load_s: float) -> dict[str, Any]:
        """The end of the answer, with its counts and durations."""
        body = self.line(Piece())
        reason = "length" if done.finish == "length" else "stop"
        body |= {"done": True, "done_reason": reason, **_figures(done, total_s, load_s)}
        if done.tokens and not self._chat:
            body["context"] = list(done.tokens)
        warnings = list(self._warnings)
        if done.cut_tokens:
            warnings.append(f"{done.cut_tokens} tokens of the prompt did not fit and were left out")
        if warnings:
            body["warnings"] = warnings
        return body

    def whole(self, pieces: Iterable[Piece], done: Done, *, total_s: float, load_s: float) -> dict[str, Any]:
        """The answer in one object."""
        pieces = list(pieces)
        said = Piece(
            text="".join(piece.text for piece in pieces),
            thinking="".join(piece.thinking for piece in pieces),
            tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
            logprobs=tuple(one for piece in pieces for one in piece.logprobs),
        )
        return self.line(said) | self._end(done, total_s, load_s)

    def loaded(self, reason: Literal["load", "unload"], *, total_s: float, load_s: float) -> dict[str, Any]:
        """The answer to a request that asks for none: the model was loaded, or unloaded."""
        body = self.line(Piece())
        body |= {"done": True, "done_reason": reason, "total_duration": _ns(total_s), "load_duration": _ns(load_s)}
        return body | ({"warnings": self._warnings} if self._warnings else {})

    def _end(self, done: Done, total_s: float, load_s: float) -> dict[str, Any]:
        """The last line without its (empty) text, to be laid over a whole answer."""
        body = self.last(done, total_s=total_s, load_s=load_s)
        return {key: value for key, value in body.items() if key not in ("message", "response")}

    def _tool_calls(self, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        made = []
        for call in calls:
            function = {"index": self._calls, "name": call.name, "arguments": call.arguments}
            made.append({"id": call.id or f"call_{self._calls}", "function": function})
            self._calls += 1
        return made


def now() -> str:
    """This moment as RFC 3339 writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def embed_body(model: str, vectors: list[list[float]], tokens: int, total_s: float, load_s: float) -> dict[str, Any]:
    """The answer of /api/embed."""
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": _ns(total_s),
        "load_duration": _ns(load_s),
        "prompt_eval_count": tokens,
    }


def _figures(done: Done, total_s: float, load_s: float) -> dict[str, int]:
    return {
        "total_duration": _ns(total_s),
        "load_duration": _ns(load_s),
        "prompt_eval_count": done.prompt_tokens,
        "prompt_eval_duration": _ns(done.prompt_s),
        "eval_count": done.completion_tokens,
        "eval_duration": _ns(done.decode_s),
    }


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    body = _plain(one)
    if one.top:
        body["top_logprobs"] = [_plain(other) for other in one.top]
    return body


def _plain(one: TokenLogprob) -> dict[str, Any]:
    value = _LEAST if one.logprob is None else max(one.logprob, _LEAST)
    return {"token": one.token, "logprob": value, "bytes": list(one.bytes)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
