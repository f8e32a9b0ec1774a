"""Chat templates: a conversation becomes the text that a model was trained on.

A template comes with a model and is a program by a stranger. It is rendered in Jinja's immutable sandbox, in a process
of its own that has limits on CPU time and memory: whatever it tries (endless loops, gigabytes of text, exponentially
nested lists), it costs two seconds and ends in one line, and the model's own process is not touched.

**Content is never control.** What users write may hold text such as `<|im_end|>`, which the tokenizer would read as the
end of their turn. Before rendering, each such text in a message gets an invisible mark (a Unicode noncharacter) after
its first character; `split_guarded` cuts the rendered text there, and runners tokenize the pieces one by one, so that
no piece holds a control token which the template did not put there. Text without control tokens is unchanged, so that
its tokens are exactly those of the usual rendering. Engines that take only text get it from `unguarded`, without marks.
"""

import atexit
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sizewise.core.errors import BadModel, EngineFailed, UsageError
from sizewise.core.model import Model
from sizewise.core.requests import Message
from sizewise.load.child import Child

GUARD = "\ufdd0"  # a noncharacter: no text that people exchange holds it
MOST_TEMPLATE = 1 << 18  # characters; the longest templates in use have about 30,000


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    control: Iterable[str] = (),
) -> str:
    """Render a conversation.

    Args:
        template: Jinja source, with the functions that Hugging Face templates use.
        messages: the turns.
        bos: text of the token that begins a text.
        eos: text of the token that ends one.
        add_generation_prompt: end with the beginning of the assistant's next turn.
        control: texts of the control tokens; where messages hold one, it is marked to be read as plain text.

    Returns:
        The prompt, with marks where content held control tokens; pass it to a runner as it is.

    Raises:
        BadModel: the template has an error, is too large, or used too much time or memory.
        UsageError: the template itself refuses these messages (some want user and assistant to alternate).
        Unsafe: the template reached for what the sandbox forbids.
    """
    if len(template) > MOST_TEMPLATE:
        raise BadModel(f"the chat template has {len(template)} characters; at most {MOST_TEMPLATE} are rendered")
    turns = [{"role": message.role, "content": guard(message.content, control)} for message in messages]
    text: str = _worker.call(
        template=template, messages=turns, bos=bos, eos=eos, add_generation_prompt=add_generation_prompt
    )
    return text


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How one model wants a conversation written: by its template, else in its family's form, else as plain text."""

    template: str | None
    form: str | None  # text with `{prompt}`
    bos: str
    eos: str
    control: tuple[str, ...]  # texts of the control tokens

    @classmethod
    def of(
        cls, model: Model, template: str | None, *, architecture: str, bos: str, eos: str, control: Iterable[str]
    ) -> "ChatForm":
        """The form of a model. What is stored with it goes before `template`, which came in its weights' file."""
        form = prompt_form(model.name) or prompt_form(architecture)
        return cls(model.template or template, form, bos, eos, tuple(control))

    @property
    def known(self) -> bool:
        """False where messages are given as plain text, which a model may not take for a conversation."""
        return bool(self.template or self.form)

    def with_template(self, template: str | None) -> "ChatForm":
        """The same with another template, if one is given."""
        return replace(self, template=template or self.template)

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model continues, with marks as by `render_chat`, which see for what it raises."""
        if self.template:
            return render_chat(self.template, messages, bos=self.bos, eos=self.eos, control=self.control)
        return render_without_template(messages, self.form, control=self.control)


def guard(text: str, control: Iterable[str]) -> str:
    """Mark each control token's text within `text`, so that it will not be read as one."""
    text = text.replace(GUARD, "")
    known = [token for token in control if len(token) > 1 and token in text]
    if not known:
        return text
    # The mark goes behind the first character of each, overlapping ones too: cut there, neither half is the token.
    pattern = "|".join(re.escape(token) for token in known)
    return re.sub(f"(?=(?:{pattern}))(.)", rf"\1{GUARD}", text, flags=re.DOTALL)


def split_guarded(text: str) -> list[str]:
    """The pieces between marks: to be tokenized one by one."""
    return text.split(GUARD)


def unguarded(text: str) -> str:
    """The text without marks, for engines that take only text."""
    return text.replace(GUARD, "")


def prompt_form(family: str) -> str | None:
    """The known prompt form of a family or model without a chat template: text with `{prompt}`, or None.

    Args:
        family: an architecture, family or model name such as "phi2".
    """
    from sizewise.load.catalogue import entries

    wanted = _plain(family)
    for entry in entries().values():
        if entry.prompt_form and wanted and wanted in (_plain(entry.family), _plain(entry.name)):
            return entry.prompt_form
    return None


def render_without_template(messages: Sequence[Message], form: str | None, *, control: Iterable[str] = ()) -> str:
    """A prompt for a model that has no chat template: its family's form, or the plain contents.

    Args:
        messages: the turns; a system message goes before the first question.
        form: text with `{prompt}` (see `prompt_form`), or None.
        control: as in `render_chat`.
    """
    known = tuple(control)
    parts: list[str] = []
    system = ""
    for message in messages:
        content = guard(message.content, known)
        if message.role == "system":
            system += content + "\n\n"
        elif message.role == "assistant":
            parts.append(content)
        else:
            question = system + content
            parts.append(form.replace("{prompt}", question) if form else question)
            system = ""
    # an answer follows its question directly where the form ends with its own cue, such as "Output:"
    text = parts[0] if parts else ""
    for before, part in zip(messages[-len(parts) :], parts[1:], strict=False):
        text += (" " if form and before.role != "assistant" else "\n\n") + part
    return text + system.rstrip()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class _Worker:
    """The rendering process: started when first needed, started anew after a template that broke it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None

    def call(self, **arguments: object) -> str:
        with self._lock:
            if self._child is None or not self._child.alive:
                self._child = Child("sizewise.load._template_child", "chat template")
                atexit.register(self._child.close)
            try:
                text, _ = self._child.call("render", None, **arguments)
            except EngineFailed as error:
                self._child.close()
                raise BadModel("the chat template needs more time or memory than any real one: not rendered") from error
        if "refused" in text:
            raise UsageError(f"the chat template refuses these messages: {text['refused']}")
        return str(text["text"])


_worker = _Worker()
