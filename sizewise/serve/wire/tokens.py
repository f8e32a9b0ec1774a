"""Tokens of texts: requests to split, to join and to count."""

from dataclasses import dataclass

from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Job
from sizewise.serve.lease import KeepAlive
from sizewise.serve.wire import openai
from sizewise.serve.wire.openai_completions import token_ids


@dataclass(frozen=True)
class AskedTokens:
    """A text, or a conversation that a model's template turns into one."""

    model: str
    context: int | None
    keep_alive: KeepAlive
    text: str | None
    job: Job | None
    special: bool  # control tokens in the text count as such
    bos: bool  # begin as the model's prompts begin
    pieces: bool


def parse(fields: Fields) -> AskedTokens:
    """Read a request that holds a text or messages.

    Raises:
        BadField: it holds neither or both, or a field is wrong.
    """
    common = openai.common(fields)
    text = fields.text("text", None)
    job = None
    if fields.body.get("messages") is not None:
        job = Job(turns=openai.messages(fields), **openai.tool_fields(fields))
    if (text is None) == (job is None):
        raise BadField("text", "send either text or messages")
    special = fields.boolean("special", job is not None)
    bos = fields.boolean("bos", job is not None)
    if job is not None and not (special and bos):
        raise BadField("special" if not special else "bos", "is always true for messages")
    pieces = fields.boolean("pieces", False)
    fields.finish()
    return AskedTokens(**common, text=text, job=job, special=special, bos=bos, pieces=pieces)


@dataclass(frozen=True)
class AskedText:
    """Token ids that are to become text."""

    model: str
    context: int | None
    keep_alive: KeepAlive
    tokens: tuple[int, ...]


def parse_ids(fields: Fields) -> AskedText:
    """Read a request that holds token ids."""
    common = openai.common(fields)
    sent = fields.items("tokens", most=2**20)
    tokens = token_ids(sent, "tokens") if sent else ()
    fields.finish()
    return AskedText(**common, tokens=tokens)
