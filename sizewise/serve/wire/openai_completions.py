"""`/v1/completions`: raw text or token ids in, their continuation out; with `echo`, the prompt's log-probabilities.

A prompt's log-probabilities are exact: they come from the scorer, not from the sampler. Control tokens count as such in
a prompt that is text, as the caller writes the whole of it. Token ids are taken as they are, without a BOS in front.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Job, TokenLogprob
from sizewise.serve.wire import limits, openai
from sizewise.serve.wire.openai import Answer, Asked

MOST_PROMPTS, DEFAULT_TOKENS = 128, 16
Prompt = str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AskedCompletion(Asked):
    """A request for completions: `n` jobs for each prompt."""

    prompts: tuple[Prompt, ...]
    echo: bool

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens are told at each place; None: no log-probabilities."""
        return self.job.top_logprobs

    @property
    def generates(self) -> bool:
        """False where only the prompt itself is asked about."""
        return bool(self.given["max_tokens"])


def parse(fields: Fields) -> AskedCompletion:
    """Read a request.

    Raises:
        BadField: a field is unknown, missing, or holds what it cannot.
    """
    common = openai.common(fields)
    stream, usage = openai.streaming(fields)
    given = openai.sampling(fields)
    echo = fields.boolean("echo", False)
    most = openai.most_tokens(fields, "max_tokens", low=0 if echo else 1)
    given["max_tokens"] = DEFAULT_TOKENS if most is None else most
    n = fields.integer("n", 1, low=1, high=openai.MOST_CHOICES)
    best_of = fields.integer("best_of", n, low=1, high=openai.MOST_CHOICES)
    if best_of != n:
        raise BadField("best_of", f"is {best_of}; only the value of n ({n}) is supported: ask for n and choose")
    suffix, grammar = fields.text("suffix", None), fields.text("grammar", None)
    job = Job(
        prompt="",
        special=True,
        suffix=suffix or None,
        top_logprobs=fields.integer("logprobs", None, low=0, high=openai.MOST_TOP),
        grammar=None if grammar is None else limits.grammar(grammar, "grammar"),
        schema=openai.form(fields.raw("response_format"), "response_format"),
    )
    if echo and suffix:
        raise BadField("echo", "cannot be used together with suffix")
    if stream and echo and job.top_logprobs is not None:
        raise BadField("stream", "cannot be used together with echo and logprobs: ask without stream")
    fields.without_effect(("user",))
    prompts = tuple(_prompts(fields))
    fields.finish()
    return AskedCompletion(
        prompts=prompts,
        echo=echo,
        job=job,
        given=given,
        n=n,
        stream=stream,
        usage=usage,
        warnings=tuple(fields.warnings),
        **common,
    )


def _prompts(fields: Fields) -> list[Prompt]:
    sent = fields.raw("prompt")
    if sent is None:
        raise BadField("prompt", "is required")
    if isinstance(sent, str):
        return [sent]
    if not isinstance(sent, list) or not sent:
        raise BadField("prompt", "must be a string, a list of strings, a list of token ids or a list of such lists")
    if isinstance(sent[0], int | float) and not isinstance(sent[0], bool):
        return [token_ids(sent, "prompt")]
    if len(sent) > MOST_PROMPTS:
        raise BadField("prompt", f"has {len(sent)} prompts; at most {MOST_PROMPTS} are allowed")
    kind: type = str if isinstance(sent[0], str) else list
    found: list[Prompt] = []
    for place, item in enumerate(sent):
        if not isinstance(item, kind) or not isinstance(item, str | list):
            raise BadField(f"prompt[{place}]", "is not of the same kind as the others, or neither text nor token ids")
        found.append(item if isinstance(item, str) else token_ids(item, f"prompt[{place}]"))
    return found


def token_ids(sent: Any, where: str) -> tuple[int, ...]:
    """A list of token ids; whether the model has them, the session says."""
    if not isinstance(sent, list) or not sent:
        raise BadField(where, "must be a list of token ids, at least one")
    for place, token in enumerate(sent):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise BadField(f"{where}[{place}]", f"is no token id: {token!r:.24}")
    return tuple(sent)


class Completion:
    """The answer to one request, whole or in chunks. Choices are numbered prompt by prompt."""

    def __init__(self, asked: AskedCompletion, model: Model, created: int) -> None:
        self.asked = asked
        count = asked.n * len(asked.prompts)
        self.answers = [Answer() for _ in range(count)]
        self.prompts: list[str] = [""] * count  # what is echoed
        self.prompt_logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        head = {"id": openai.new_id("cmpl-", 12), "object": "text_completion", "created": created}
        self._head = {**head, "model": asked.model, "system_fingerprint": openai.fingerprint(model)}
        self._started = [False] * count
        self._lengths = [0] * count  # characters sent, for the offsets

    def add(self, index: int, event: Event) -> None:
        """Take the next event of one choice."""
        self.answers[index].add(event)

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, answer in enumerate(self.answers):
            tokens = [*self.prompt_logprobs[index], *answer.logprobs]
            choices.append(
                {
                    "index": index,
                    "text": self.prompts[index] + answer.text,
                    "logprobs": None if self.asked.logprobs is None else logprobs_json(tokens, self.asked.logprobs),
                    "finish_reason": answer.done.finish if answer.done else "length",
                }
            )
        return {**self._head, "choices": choices, "usage": self._usage()}

    def chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """The next event of one choice; an echoed prompt comes first, the finish in a chunk of its own."""
        if not self._started[index]:
            self._started[index] = True
            if self.prompts[index]:
                yield self._chunk(index, self.prompts[index], ())
        if isinstance(event, Done):
            self.answers[index].done = event
            yield self._chunk(index, "", (), event.finish)
        else:
            yield self._chunk(index, event.text, event.logprobs)

    def end(self) -> Iterator[dict[str, Any] | bytes]:
        """What follows the last choice's end."""
        if self.asked.usage:
            yield {**self._head, "choices": [], "usage": self._usage()}
        yield openai.END

    def _chunk(
        self, index: int, text: str, tokens: Sequence[TokenLogprob], finish: str | None = None
    ) -> dict[str, Any]:
        told = None
        if self.asked.logprobs is not None and tokens:
            told = logprobs_json(tokens, self.asked.logprobs, self._lengths[index])
        self._lengths[index] += len(text)
        choice = {"index": index, "text": text, "logprobs": told, "finish_reason": finish}
        body: dict[str, Any] = {**self._head, "choices": [choice]}
        if finish and self.asked.warnings:
            body["warnings"] = self.asked.warnings
        return {**body, "usage": None} if self.asked.usage else body

    def _usage(self) -> dict[str, Any]:
        """Each prompt counts once, whatever the number of its choices."""
        n, dones = self.asked.n, [answer.done for answer in self.answers]
        parts = [openai.usage_json(dones[at : at + n]) for at in range(0, len(dones), n)]
        total = {
            key: sum(part[key] for part in parts) for key in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
        cached = sum(part["prompt_tokens_details"]["cached_tokens"] for part in parts)
        return {**total, "prompt_tokens_details": {"cached_tokens": cached}}


def logprobs_json(tokens: Sequence[TokenLogprob], top: int, start: int = 0) -> dict[str, Any]:
    """The four lists of the old form. The token itself is among the likeliest, even where it is not one of them."""
    offsets: list[int] = []
    tops: list[dict[str, float] | None] = []
    decoder, length = codecs.getincrementaldecoder("utf-8")("replace"), start
    for token in tokens:
        offsets.append(length)
        length += len(decoder.decode(bytes(token.bytes)))
        if token.logprob is None or not top:
            tops.append(None)
            continue
        likeliest = {_text(other): openai.floor(other.logprob) for other in token.top[:top]}
        likeliest.setdefault(_text(token), openai.floor(token.logprob))
        tops.append(likeliest)
    return {
        "tokens": [_text(token) for token in tokens],
        "token_logprobs": [None if token.logprob is None else openai.floor(token.logprob) for token in tokens],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def _text(token: TokenLogprob) -> str:
    """A token's text; one that is no text of its own (half a character) is told by its bytes."""
    data = bytes(token.bytes)
    try:
        return data.decode("utf-8") if data or not token.token else token.token
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
