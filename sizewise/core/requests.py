"""What is asked of a model and what comes back. Values only; every runner and every wire format speaks them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "cancelled"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The default is greedy, so that the same question gets the same answer."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Either raw text to continue (`prompt`) or a conversation (`messages`), never both."""

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("a request has either a prompt or messages")


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is each of `continuations` after `prompt`? Leading spaces belong to the continuations."""

    prompt: str
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer with what it took. Times in seconds; None where the engine does not tell."""

    text: str
    finish: Finish
    prompt_tokens: int | None
    completion_tokens: int | None
    first_token_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Score:
    """Natural-log probability of one continuation: the sum over its `tokens`. `greedy`: each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class TextScore:
    """Natural-log probability of a whole text, of which `tokens` tokens could be scored (the first has no context)."""

    logprob: float
    tokens: int
    bytes: int


OnChunk = Callable[[int, Chunk], None]  # (index of the request, piece of its answer)
