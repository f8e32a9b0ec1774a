"""Ollama's requests: a body becomes an `Ask`, and with the model that it names a `Job`. Nothing is loaded or looked up.

Two steps, because a wrong body must be refused before anything is loaded, while sampling parameters and the system
prompt that are stored with a model count only where the request says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Job, Turn
from sizewise.serve.lease import UNSET, KeepAlive
from sizewise.serve.settings import parse_duration
from sizewise.serve.wire import limits
from sizewise.serve.wire.ollama_messages import read_images, read_messages
from sizewise.serve.wire.ollama_options import draw_of, read_options

MOST_LOGPROBS = 20
MOST_INPUTS = 4096
LEVELS = ("low", "medium", "high", "max")
_TOKEN_IDS = range(2**31)
_MOST_CONTEXT_IDS = 1 << 22


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body of /api/generate or /api/chat says by itself."""

    kind: Literal["generate", "chat"]
    model: str
    stream: bool
    options: Mapping[str, Any]
    keep_alive: KeepAlive
    turns: tuple[Turn, ...] = ()  # chat: the messages; generate: the prompt
    system: str | None = None  # generate: instead of the model's own
    raw: bool = False
    suffix: str | None = None
    context: tuple[int, ...] = ()  # generate: tokens of the conversation so far
    schema: dict[str, Any] | Literal["json"] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    think: bool | str | None = None
    top_logprobs: int | None = None
    template: str | None = None
    truncate: bool = False
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def only_loads(self) -> bool:
        """True where nothing is to be answered: load the model, or unload it."""
        return not self.turns

    @property
    def unloads(self) -> bool:
        """True where nothing is to be answered and the model is not to stay."""
        return self.only_loads and self.keep_alive == 0

    @property
    def num_ctx(self) -> int | None:
        """The context that the request asks for."""
        return self.options.get("num_ctx")


@dataclass(frozen=True, slots=True)
class EmbedAsk:
    """What a body of /api/embed or /api/embeddings says."""

    model: str
    texts: tuple[str, ...]
    truncate: bool
    dimensions: int | None
    keep_alive: KeepAlive
    num_ctx: int | None


def read_model(fields: Fields, key: str = "model") -> str:
    """The model's name, whose form is judged elsewhere.

    Raises:
        BadField: it is missing or empty.
    """
    name: str = fields.text(key, "", most=1000)
    if not name.strip():
        raise UsageError(f"{fields.name(key)} is required")
    return name


def read_keep_alive(fields: Fields) -> KeepAlive:
    """`keep_alive`: seconds as a number, or a duration such as "5m"; negative is for ever.

    Raises:
        BadField: it is neither.
    """
    value = fields.raw("keep_alive")
    if value is None:
        return UNSET
    try:
        return parse_duration(value)
    except UsageError as error:
        raise BadField("keep_alive", str(error)) from error


def read_generate(fields: Fields) -> Ask:
    """The body of /api/generate.

    Raises:
        UsageError: a field is wrong, unknown, or does not go with another one.
    """
    prompt, images = fields.text("prompt", ""), read_images(fields)
    raw, context = fields.boolean("raw", False), _context(fields)
    system, suffix = fields.text("system", None), fields.text("suffix", "") or None
    common = _common(fields)
    fields.without_effect(("width", "height", "steps"))
    fields.finish()
    if raw and (system or context or common["template"]):
        raise UsageError("raw: a raw prompt goes with neither template, system nor context")
    if images and (raw or suffix or context):
        raise BadField("images", "go only with a plain prompt, without raw, suffix and context")
    if suffix and (context or common["schema"]):
        raise BadField("suffix", "goes with neither context nor format")
    given = prompt or images or suffix
    turns = (Turn("user", prompt, images=images),) if given else ()
    more = {"system": system, "raw": raw, "suffix": suffix, "context": context}
    return Ask("generate", turns=turns, **more, **common, warnings=tuple(fields.warnings))


def read_chat(fields: Fields) -> Ask:
    """The body of /api/chat.

    Raises:
        UsageError: a field is wrong or unknown.
    """
    turns, tools = read_messages(fields), limits.tools(fields.raw("tools", []))
    common = _common(fields)
    fields.finish()
    return Ask("chat", turns=turns, tools=tools, **common, warnings=tuple(fields.warnings))


def read_embed(fields: Fields) -> EmbedAsk:
    """The body of /api/embed: `input` is one text or a list of texts; an empty one asks for nothing.

    Raises:
        UsageError: a field is wrong or unknown, or a text is no string.
    """
    model = read_model(fields)
    given = fields.raw("input", "")
    if not isinstance(given, str | list):
        raise BadField("input", "must be a string or a list of strings")
    texts = fields.strings("input", []) if given else []
    return _embed(fields, model, texts)


def read_embeddings(fields: Fields) -> EmbedAsk:
    """The body of the older /api/embeddings: one text.

    Raises:
        UsageError: a field is wrong or unknown.
    """
    model, prompt = read_model(fields), fields.text("prompt", "")
    return _embed(fields, model, [prompt] if prompt else [])


def job_of(ask: Ask, model: Model) -> Job:
    """What a loaded model is to do for a request."""
    job = Job(
        draw=draw_of(ask.options, model.defaults),
        schema=ask.schema,
        tools=ask.tools,
        think=ask.think,
        top_logprobs=ask.top_logprobs,
        template=ask.template,
        truncate=ask.truncate,
    )
    if ask.raw or ask.suffix is not None:
        return replace(job, prompt=ask.turns[0].content, special=ask.raw, suffix=ask.suffix)
    system = (Turn("system", ask.system),) if ask.system else ()
    return replace(job, turns=(*system, *ask.turns), before=ask.context)


def _common(fields: Fields) -> dict[str, Any]:
    """The fields that generate and chat share."""
    model = read_model(fields)
    stream = fields.boolean("stream", True)
    if fields.boolean("shift", False):
        fields.warn("shift has no effect here: an answer ends where the context is full")
    return {
        "model": model,
        "stream": stream,
        "options": read_options(fields),
        "keep_alive": read_keep_alive(fields),
        "schema": _format(fields),
        "think": _think(fields),
        "top_logprobs": _logprobs(fields),
        "template": fields.text("template", "") or None,
        "truncate": fields.boolean("truncate", False),
    }


def _embed(fields: Fields, model: str, texts: list[str]) -> EmbedAsk:
    truncate = fields.boolean("truncate", False)
    dimensions = fields.integer("dimensions", None, low=1)
    keep_alive, options = read_keep_alive(fields), read_options(fields)
    fields.finish()
    return EmbedAsk(model, tuple(texts), truncate, dimensions, keep_alive, options.get("num_ctx"))


def _format(fields: Fields) -> dict[str, Any] | Literal["json"] | None:
    value = fields.raw("format", "")
    if value == "":
        return None
    if value == "json":
        return "json"
    if not isinstance(value, dict):
        raise BadField("format", 'must be "json" or a JSON schema')
    return limits.schema(value, "format")


def _think(fields: Fields) -> bool | str | None:
    value = fields.raw("think")
    if value is None or isinstance(value, bool) or value in LEVELS:
        checked: bool | str | None = value
        return checked
    raise BadField("think", f"must be true, false or one of {', '.join(LEVELS)}")


def _logprobs(fields: Fields) -> int | None:
    """None: none are asked for; else how many of the likeliest to tell at each place."""
    wanted, top = fields.boolean("logprobs", False), fields.integer("top_logprobs", 0, low=0, high=MOST_LOGPROBS)
    if top and not wanted:
        fields.warn("top_logprobs has no effect without logprobs")
    return top if wanted else None


def _context(fields: Fields) -> tuple[int, ...]:
    ids = fields.items("context", [], most=_MOST_CONTEXT_IDS)
    for place, value in enumerate(ids):
        if isinstance(value, bool) or not isinstance(value, int) or value not in _TOKEN_IDS:
            raise BadField(f"context[{place}]", f"is {value!r:.40}; expected the id of a token")
    return tuple(ids)
