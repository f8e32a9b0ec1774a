"""A job in the words of the engine's `/completion`, and its events as ours."""

import json
from collections.abc import Sequence
from typing import Any

from sizewise.core.errors import EngineFailed, UsageError
from sizewise.load.llama.score import TokenScore
from sizewise.serve.engine import Engine
from sizewise.serve.job import Done, Draw, Finish, Job, Piece, TokenLogprob

# Of the last event; its other fields repeat the settings and the whole prompt.
_FIELDS = [
    *("content", "stop", "stop_type", "stopping_word", "tokens_predicted", "timings", "tokens"),
    "completion_probabilities",
]


def drawing(draw: Draw, vocabulary: int) -> dict[str, Any]:
    """How tokens are drawn, in the engine's words.

    Raises:
        UsageError: `logit_bias` names a token that the model does not have.
    """
    body: dict[str, Any] = {
        "temperature": draw.temperature,
        "top_p": draw.top_p,
        "top_k": draw.top_k,
        "min_p": draw.min_p,
        "typical_p": draw.typical_p,
        "repeat_last_n": draw.repeat_last_n,
        "repeat_penalty": draw.repeat_penalty,
        "presence_penalty": draw.presence_penalty,
        "frequency_penalty": draw.frequency_penalty,
        "seed": -1 if draw.seed is None else draw.seed % (2**32 - 1),
        "stop": list(draw.stop),
    }
    if draw.logit_bias:
        for token, _ in draw.logit_bias:
            if not 0 <= token < vocabulary:
                raise UsageError(f"logit_bias: {token} is no token; there are {vocabulary}, from 0")
        body["logit_bias"] = [[token, bias] for token, bias in draw.logit_bias]
    return body


class Completion:
    """One answer under way: what is sent for it, and what its events say."""

    def __init__(self, engine: Engine, job: Job, prompt: Sequence[int], room: int, cut: int = 0) -> None:
        """`room`: tokens that the answer may have at most; `cut`: tokens left out of the prompt."""
        self._engine, self._job, self._prompt, self._cut = engine, job, list(prompt), cut
        wanted = job.draw.max_tokens
        self.limit = room if wanted is None else min(room, wanted)
        self._answer: list[int] = []
        self._text = ""  # kept only where it must be JSON
        self._last: dict[str, Any] = {}
        self._seen = 0  # tokens that the engine has told of, or said that there were

    def body(self, limits: dict[str, Any]) -> dict[str, Any]:
        """The request; `limits` on what may be answered: a schema or a grammar."""
        body = {
            "prompt": self._prompt,
            "n_predict": self.limit,
            "cache_prompt": True,
            "return_tokens": True,
            "return_progress": True,  # a word after each part of the prompt: so the engine notices who has gone
            "response_fields": _FIELDS,
            **drawing(self._job.draw, self._engine.server.vocabulary),
            **limits,
        }
        if self._job.top_logprobs is not None:
            body["n_probs"] = max(1, self._job.top_logprobs)
        return body

    def nothing(self) -> Done:
        """The end of an answer that may have no tokens."""
        return Done("length", len(self._prompt), 0, cut_tokens=self._cut, tokens=tuple(self._prompt))

    async def piece(self, events: list[dict[str, Any]]) -> Piece | None:
        """What events that came together add to the answer."""
        text, logprobs = "", []
        for event in events:
            text += event["content"]
            logprobs += await self._tokens(event)
        self._last = events[-1]
        if self._job.schema is not None:
            self._text += text
        return Piece(text=text, logprobs=tuple(logprobs)) if text or logprobs else None

    def check_json(self) -> None:
        """Make sure that an answer which was to be JSON, and which nothing cut off, is JSON.

        Raises:
            EngineFailed: it is none: what enforces schemas gave up on the way and did not say so.
        """
        if self._job.schema is None or self._last.get("stop_type") != "eos":
            return
        try:
            json.loads(self._text)
        except ValueError as error:
            raise EngineFailed(f"{self._engine.model.name}: the schema is too hard to hold to: simplify it") from error

    def done(self, event: dict[str, Any]) -> Done:
        """The end, from the last event."""
        timings = event.get("timings", {})
        finish: Finish = "length" if event.get("stop_type") == "limit" else "stop"
        return Done(
            finish=finish,
            prompt_tokens=len(self._prompt),
            completion_tokens=event["tokens_predicted"],
            cached_tokens=timings.get("cache_n", 0),
            cut_tokens=self._cut,
            prompt_s=timings.get("prompt_ms", 0.0) / 1000,
            decode_s=timings.get("predicted_ms", 0.0) / 1000,
            tokens=(*self._prompt, *self._answer) if len(self._answer) == event["tokens_predicted"] else (),
            stop_text=event.get("stopping_word", ""),
        )

    async def _tokens(self, event: dict[str, Any]) -> list[TokenLogprob]:
        """Note an event's tokens; give their log-probabilities where they are wanted.

        The engine holds back text until a character is whole and then tells only of its last token. The others follow
        from the text: a character has one usual spelling in tokens. Their log-probabilities come from the scorer.
        """
        told: list[int] = event["tokens"]
        missing = event["tokens_predicted"] - self._seen - len(told)
        self._seen = event["tokens_predicted"]
        spelled: list[int] = []
        if missing > 0 and told and event["content"]:
            spelled = await self._spelled(event["content"])
            if len(spelled) != missing + len(told) or spelled[-len(told) :] != told:
                spelled = []
        top = self._job.top_logprobs
        if top is None:
            self._answer += spelled or told
            return []
        entries = event.get("completion_probabilities", ())
        found = [_one(entry, tuple(_one(other) for other in entry["top_logprobs"][:top])) for entry in entries]
        if spelled:
            before = [*self._prompt, *self._answer]
            found = await scored(self._engine, [*before, *spelled], top, len(before))
        self._answer += spelled or told
        return found

    async def _spelled(self, text: str) -> list[int]:
        """The usual tokens of a text within another; some tokenizers put a space before one that stands alone."""
        ahead, both = [await self._engine.encode(part, special=False, bos=False) for part in ("\n", "\n" + text)]
        return both[len(ahead) :] if both[: len(ahead)] == ahead else []


async def scored(engine: Engine, tokens: Sequence[int], top: int, first: int = 0) -> list[TokenLogprob]:
    """Log-probabilities of `tokens[first:]`, each given all before it; exact, from the scorer."""
    runner = await engine.runner()
    rows: list[TokenScore] = await engine.in_thread(lambda: runner.token_scores(tokens, top, first))
    ids = [*tokens[first:], *(other for row in rows for other, _ in row.top)]
    texts = dict(zip(ids, await engine.in_thread(lambda: engine.server.pieces(ids)), strict=True))

    def one(token: int, logprob: float | None, others: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = texts[token]
        return TokenLogprob(data.decode("utf-8", "replace"), tuple(data), logprob, token, others)

    return [
        one(token, row.logprob, tuple(one(other, value) for other, value in row.top))
        for token, row in zip(tokens[first:], rows, strict=True)
    ]


def _one(entry: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(entry["token"], tuple(entry["bytes"]), float(entry["logprob"]), int(entry["id"]), top)
