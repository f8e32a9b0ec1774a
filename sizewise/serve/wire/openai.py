"""What OpenAI's endpoints have in common: how messages, sampling and formats are read, and how answers are written."""

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import Any, Literal

from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Draw, Event, Job, TokenLogprob, ToolCall, Turn
from sizewise.serve.lease import UNSET, KeepAlive
from sizewise.serve.settings import parse_duration
from sizewise.serve.tools import MOST_TOOLS
from sizewise.serve.wire import limits
from sizewise.serve.wire.turns import paired

MOST_CHOICES, MOST_TOP, MOST_TOKENS = 8, 20, 2**31 - 1
DEFAULTS = Draw(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_STORED = {"num_predict": "max_tokens", "num_keep": "keep"}  # Ollama's names of stored parameters, where they differ
_KNOWN = {known.name: known for known in fields_of(Draw)}
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}

Given = dict[str, Any]  # values of `Draw` that the request itself names


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, checked, before the model is known: what is to be made and in which form it goes back."""

    model: str
    job: Job
    given: Given = field(default_factory=dict)
    n: int = 1
    stream: bool = False
    usage: bool = False  # a last chunk of the stream tells the tokens
    context: int | None = None
    keep_alive: KeepAlive = UNSET
    warnings: tuple[str, ...] = ()

    def jobs(self, model: Model) -> list[Job]:
        """The `n` jobs: what the request leaves open comes from the model, then from the wire's defaults."""
        draw = resolve(self.given, model.defaults)
        seeds = [None if draw.seed is None else draw.seed + i for i in range(self.n)]
        return [replace(self.job, draw=replace(draw, seed=seed)) for seed in seeds]


def resolve(given: Given, stored: Mapping[str, Any]) -> Draw:
    """How tokens are drawn: the request goes before the model's stored parameters, and these before the defaults."""
    values: Given = {}
    for key, value in stored.items():
        name = _STORED.get(key, key)
        if name not in _KNOWN or name in ("logit_bias",):
            continue
        if name == "stop":
            texts = [value] if isinstance(value, str) else value
            values[name] = tuple(text for text in texts if isinstance(text, str)) if isinstance(texts, list) else ()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            whole = name in ("max_tokens", "top_k", "repeat_last_n", "seed", "keep")
            values[name] = int(value) if whole else float(value)
    if values.get("max_tokens", 1) < 1:
        del values["max_tokens"]  # -1 and -2 are Ollama's words for "until the end"
    return replace(DEFAULTS, **(values | given))


def sampling(fields: Fields) -> Given:
    """The sampling fields that chat, completions and responses share; only those that were sent."""
    given: Given = {
        "temperature": fields.number("temperature", None, low=0, high=2),
        "top_p": fields.number("top_p", None, low=0, high=1, above=True),
        "presence_penalty": fields.number("presence_penalty", None, low=-2, high=2),
        "frequency_penalty": fields.number("frequency_penalty", None, low=-2, high=2),
        "top_k": fields.integer("top_k", None, low=0, high=1_000_000),
        "min_p": fields.number("min_p", None, low=0, high=1),
        "repeat_penalty": fields.number("repeat_penalty", None, low=0, high=10, above=True),
        "stop": limits.stops(fields),
        "seed": fields.integer("seed", None, low=-1),
        "logit_bias": bias(fields),
    }
    sent = {name: value for name, value in given.items() if value is not None}
    return {**sent, "seed": None} if sent.get("seed") == -1 else sent  # None: a new one for each request


def bias(fields: Fields) -> tuple[tuple[int, float], ...] | None:
    """`logit_bias`: token id -> what is added to its logit. Whether the id exists, the session says."""
    sent = fields.mapping("logit_bias", None)
    if not sent:
        return None
    if len(sent) > 1024:
        raise BadField(fields.name("logit_bias"), f"has {len(sent)} entries; at most 1024 are allowed")
    found = []
    for key, value in sent.items():
        where = f"{fields.name('logit_bias')}.{key:.20}"
        if not (key.isascii() and key.isdecimal()) or len(key) > 9:
            raise BadField(where, "is no token id")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise BadField(where, "must be a number from -100 to 100")
        found.append((int(key), float(value)))
    return tuple(found)


def most_tokens(fields: Fields, *names: str, low: int = 1) -> int | None:
    """The most tokens of an answer, under any of some names; two of them must not differ."""
    found = {name: fields.integer(name, None, low=low) for name in names}
    sent = {name: value for name, value in found.items() if value is not None}
    if len(set(sent.values())) > 1:
        raise BadField(names[0], "says another number than " + " and ".join(name for name in sent if name != names[0]))
    return min(next(iter(sent.values())), MOST_TOKENS) if sent else None


def common(fields: Fields) -> dict[str, Any]:
    """Model, context and keep-alive: the fields that decide which session answers. Ollama's own two come as extras."""
    model = fields.text("model", "", most=400)
    if not model:
        raise BadField("model", "is required")
    return {
        "model": model,
        "context": fields.integer("num_ctx", None, low=1, high=2**31 - 1),
        "keep_alive": keep_alive(fields),
    }


def keep_alive(fields: Fields) -> KeepAlive:
    """`keep_alive` in seconds; None: for ever."""
    sent = fields.raw("keep_alive")
    if sent is None:
        return UNSET
    try:
        return parse_duration(sent)
    except UsageError as error:
        raise BadField(fields.name("keep_alive"), str(error)) from error


def streaming(fields: Fields) -> tuple[bool, bool]:
    """`stream` and `stream_options.include_usage`."""
    stream = fields.boolean("stream", False)
    options = Fields(fields.mapping("stream_options", None) or {}, "stream_options")
    usage = options.boolean("include_usage", False)
    options.raw("include_obfuscation")
    options.finish()
    if fields.body.get("stream_options") and not stream:
        raise BadField("stream_options", "is only allowed together with stream")
    return stream, usage


def messages(fields: Fields, key: str = "messages") -> tuple[Turn, ...]:
    """The conversation; see `turn`."""
    found = fields.items(key)
    if not found:
        raise BadField(key, "is empty; a conversation has at least one message")
    return paired([turn(item, f"{key}[{place}]") for place, item in enumerate(found)])


def turn(item: Any, where: str) -> Turn:
    """One message: a role, and text or a list of parts (text, image_url with a data: address)."""
    if not isinstance(item, dict):
        raise BadField(where, "must be an object")
    fields = Fields(item, where)
    role = ROLES.get(fields.choice("role", ROLES.keys()))
    calls = tool_calls(fields.items("tool_calls", None, most=MOST_TOOLS), fields.name("tool_calls"))
    sent = fields.raw("content")
    if sent is None and not (role == "assistant" and calls):
        raise BadField(f"{where}.content", "is required")
    text, images = content(sent, f"{where}.content")
    made = Turn(
        role=role,  # type: ignore[arg-type]
        content=text,
        thinking=fields.text("reasoning", None) or fields.text("reasoning_content", None) or "",
        tool_calls=calls,
        tool_name=fields.text("name", ""),
        tool_call_id=fields.text("tool_call_id", ""),
        images=images,
    )
    for absent in ("refusal", "audio", "function_call", "annotations"):
        if fields.raw(absent):
            raise BadField(fields.name(absent), "is not supported in a message")
    fields.finish()
    if calls and role != "assistant":
        raise BadField(fields.name("tool_calls"), "belong to the assistant's messages")
    return made


def content(sent: Any, where: str) -> tuple[str, tuple[bytes, ...]]:
    """Text and pictures of a message's content."""
    if sent is None or isinstance(sent, str):
        return sent or "", ()
    if not isinstance(sent, list):
        raise BadField(where, "must be a string or a list of parts")
    texts, images = [], []
    for place, part in enumerate(sent):
        at = f"{where}[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            if not isinstance(part.get("text"), str):
                raise BadField(f"{at}.text", "must be a string")
            texts.append(part["text"])
        elif kind in ("image_url", "input_image"):
            url = part.get("image_url")
            images.append(limits.data_uri(url.get("url") if isinstance(url, dict) else url, f"{at}.image_url"))
        else:
            raise BadField(f"{at}.type", f"is {kind!r:.40}; expected text or image_url")
    if len(images) > limits.MOST_IMAGES:
        raise BadField(where, f"has {len(images)} images; at most {limits.MOST_IMAGES} are allowed")
    return "\n".join(texts), tuple(images)


def tool_calls(sent: Any, where: str) -> tuple[ToolCall, ...]:
    """Calls that the assistant made before, as a client sends them back."""
    found = []
    for place, item in enumerate(sent or ()):
        at = f"{where}[{place}]"
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadField(f"{at}.function", "must be an object with a name")
        call_id = item.get("id") or ""
        if not isinstance(call_id, str):
            raise BadField(f"{at}.id", "must be a string")
        found.append(ToolCall(function["name"], arguments(function.get("arguments"), f"{at}.function"), call_id))
    return tuple(found)


def arguments(sent: Any, where: str) -> dict[str, Any]:
    """A call's arguments: JSON text of an object, or the object."""
    try:
        value = json.loads(sent) if isinstance(sent, str) and sent.strip() else sent or {}
    except (ValueError, RecursionError) as error:
        raise BadField(f"{where}.arguments", "is not valid JSON") from error
    if not isinstance(value, dict):
        raise BadField(f"{where}.arguments", "must be a JSON object")
    return value


def tool_fields(fields: Fields) -> dict[str, Any]:
    """`tools` and `tool_choice` as a `Job` takes them."""
    sent = fields.raw("tools")
    tools = limits.tools(sent) if sent is not None else ()
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, dict) else choice.get("name")
        named = [tool["function"]["name"] for tool in tools]
        if choice not in named:
            raise BadField("tool_choice", "names no function of tools")
    elif choice is not None and choice not in ("auto", "none", "required"):
        raise BadField("tool_choice", "must be 'auto', 'none', 'required' or an object that names a function")
    if choice is not None and choice != "none" and not tools:
        raise BadField("tool_choice", "is only allowed together with tools")
    return {"tools": tools, "tool_choice": choice}


def form(sent: Any, where: str) -> dict[str, Any] | Literal["json"] | None:
    """`response_format`: text, json_object, or json_schema (its schema)."""
    if sent is None:
        return None
    if not isinstance(sent, dict):
        raise BadField(where, "must be an object")
    kind = sent.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return limits.schema(sent["schema"], f"{where}.schema") if sent.get("schema") else "json"
    if kind != "json_schema":
        raise BadField(f"{where}.type", f"is {kind!r:.40}; expected text, json_object or json_schema")
    named = sent.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise BadField(f"{where}.json_schema.schema", "is required and must be an object")
    return limits.schema(named["schema"], f"{where}.json_schema.schema")


def effort(sent: Any, where: str) -> bool | str | None:
    """`reasoning_effort` as a `Job` takes it."""
    if sent is None:
        return None
    if not isinstance(sent, str) or sent not in _EFFORTS:
        raise BadField(where, f"is {sent!r:.40}; expected one of {', '.join(_EFFORTS)}")
    return _EFFORTS[sent]


class Answer:
    """An answer that is being put together from its events."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.tool_calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.done: Done | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Done):
            self.done = event
            return
        if event.text:
            self.texts.append(event.text)
        if event.thinking:
            self.thoughts.append(event.thinking)
        self.tool_calls += [named(call) for call in event.tool_calls]
        self.logprobs += event.logprobs

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.texts)

    @property
    def thinking(self) -> str:
        """All thoughts so far."""
        return "".join(self.thoughts)

    @property
    def finish(self) -> str:
        """Why the answer ended; calls count as their own reason."""
        if self.tool_calls and (self.done is None or self.done.finish != "length"):
            return "tool_calls"
        return self.done.finish if self.done else "stop"


def named(call: ToolCall) -> ToolCall:
    """A call with an id, which clients need to pair results with calls."""
    return call if call.id else replace(call, id=new_id("call_", 12))


def call_json(call: ToolCall, index: int | None = None) -> dict[str, Any]:
    """A call as OpenAI's clients read it; `index` only within a stream."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    body = {"id": call.id, "type": "function", "function": function}
    return body if index is None else {"index": index, **body}


def token_json(token: TokenLogprob, *, top: bool = True) -> dict[str, Any]:
    """A token's log-probability with its bytes, since its text may be half a character."""
    body: dict[str, Any] = {"token": token.token, "logprob": floor(token.logprob), "bytes": list(token.bytes)}
    return {**body, "top_logprobs": [token_json(other, top=False) for other in token.top]} if top else body


def floor(logprob: float | None) -> float:
    """JSON has no minus infinity: the protocol's word for "next to impossible" is -9999."""
    return -9999.0 if logprob is None or not logprob > -9999.0 else logprob


def usage_json(dones: Iterable[Done | None]) -> dict[str, Any]:
    """Tokens of some answers to one prompt, which counts once."""
    ended = [done for done in dones if done is not None]
    prompt = max((done.prompt_tokens for done in ended), default=0)
    made = sum(done.completion_tokens for done in ended)
    cached = max((done.cached_tokens for done in ended), default=0)
    body: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return {**body, "prompt_tokens_details": {"cached_tokens": cached}}


def new_id(prefix: str, size: int = 16) -> str:
    """An identifier that nobody can guess."""
    return prefix + secrets.token_hex(size)


def fingerprint(model: Model) -> str:
    """Changes whenever the weights, the template or stored parameters do."""
    return "fp_" + model.digest.removeprefix("sha256:")[:12]


END = b"[DONE]"  # the data of a stream's last event
