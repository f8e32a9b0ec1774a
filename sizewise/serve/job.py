"""What a client asks of a loaded model, whatever the wire format, and the events that answer it. Values only."""

from dataclasses import dataclass, field
from typing import Any, Literal

TurnRole = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called. `arguments` has been parsed; `id` is ours where the model gives none."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. A tool's result follows the assistant's turn whose call it answers."""

    role: TurnRole
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """How tokens are drawn. None: the model's own default, else the wire format's (see `wire/`)."""

    max_tokens: int | None = None  # None: until the model stops or its context is full
    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 40  # 0 = off
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: a new one for each request
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    keep: int = 0  # tokens kept at the front when `truncate` cuts


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to make. Exactly one of `prompt`, `tokens`, `turns` is given.

    `prompt` is the whole text that the model continues (rendered by a template before, or raw); control tokens in it
    count as such only where `special` says so. `turns` are rendered by the session.
    """

    prompt: str | None = None
    special: bool = False
    tokens: tuple[int, ...] | None = None
    turns: tuple[Turn, ...] = ()
    before: tuple[int, ...] = ()  # with `turns`: tokens of the conversation so far, which the rendered turns follow
    suffix: str | None = None  # with `prompt`: fill in the middle
    draw: Draw = field(default_factory=Draw)
    schema: dict[str, Any] | Literal["json"] | None = None  # the answer's JSON schema, or any JSON
    grammar: str | None = None  # GBNF
    tools: tuple[dict[str, Any], ...] = ()  # OpenAI's form: {"type": "function", "function": {...}}
    tool_choice: str | None = None  # "auto", "none", "required" or the name of one function
    parallel_calls: bool = True  # whether one answer may hold several calls, where the model's own format has such
    think: bool | str | None = None  # None: on where the model can; "low", "medium", "high" where it has levels
    top_logprobs: int | None = None  # None: no log-probabilities; 0: only those of the chosen tokens
    template: str | None = None  # Jinja, instead of the model's own
    truncate: bool = False  # True: cut what does not fit (said in `Done.cut_tokens`) instead of refusing it


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a token at its place, and of the likeliest others there."""

    token: str
    bytes: tuple[int, ...]
    logprob: float | None  # None: the first token of a text has no context
    id: int
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer, as it comes. Any of the fields may be empty; text never holds half a character."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()  # whole calls
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer; always the last event. Times in seconds."""

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, not computed again
    cut_tokens: int = 0  # of the prompt, left out because truncation was asked for
    prompt_s: float = 0.0
    decode_s: float = 0.0
    tokens: tuple[int, ...] = ()  # prompt and answer, for Ollama's `context`; empty where the engine does not tell
    stop_text: str = ""  # the stop sequence that was met


Event = Piece | Done
