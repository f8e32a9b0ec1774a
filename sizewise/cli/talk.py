"""A model in this process and the conversation with it: what `run` and its interactive form have in common."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sizewise.cli.render import progress, say, warn
from sizewise.core.errors import TooLong, UsageError
from sizewise.core.model import Model
from sizewise.load.store.store import Store

if TYPE_CHECKING:
    from sizewise.serve.job import Done, Job, Turn
    from sizewise.serve.session import Session

T = TypeVar("T")
_PICTURE = re.compile(r"(?:(?<=\s)|^)(\S+\.(?:png|jpe?g|webp))(?=\s|$)", re.IGNORECASE)
_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"


@dataclass(slots=True)
class Wishes:
    """How to answer. None: as the model is set up, else our default."""

    options: dict[str, Any] = field(default_factory=dict)  # by Ollama's names
    system: str = ""
    schema: Any = None  # a JSON schema, or "json"
    think: bool | str | None = None
    show_thinking: bool = True
    wrap: bool = True
    verbose: bool = False
    raw: bool = False


@dataclass(slots=True)
class Said:
    """An answer and what it took."""

    text: str = ""
    thinking: str = ""
    done: "Done | None" = None  # None: it was stopped
    first_s: float | None = None
    total_s: float = 0.0


class Talk:
    """One loaded model at a time. Everything runs in this process, engines in children of it."""

    def __init__(self, wishes: Wishes, store: Store | None = None, *, insecure: bool = False) -> None:
        self.wishes, self.store, self.insecure = wishes, store or Store(), insecure
        self.turns: list[Turn] = []
        self.load_s = 0.0
        self._loop = asyncio.Runner()
        self._session: Session | None = None

    @property
    def model(self) -> Model:
        """The model that is loaded."""
        return self.session.model

    @property
    def session(self) -> "Session":
        """What answers."""
        if self._session is None:
            raise UsageError("no model is loaded; /load NAME loads one")
        return self._session

    def load(self, reference: str) -> None:
        """Load a model in place of the one before; a name that is not here is pulled first where it can be.

        Raises:
            UnknownName: there is no such model.
        """
        from sizewise.load.pull import here

        with progress() as listen:
            model = here(reference, self.store, insecure=self.insecure, listen=listen)
        for warning in model.warnings:
            warn(warning)
        self._open(model, self._context(model))

    def reload(self) -> None:
        """Load the model again, with the context that is asked for now."""
        self._open(self.model, self._context(self.model))

    def close(self) -> None:
        """Unload."""
        if self._session:
            self._loop.run(self._session.close())
            self._session = None
        self._loop.close()

    def wait(self, work: Awaitable[T]) -> T:
        """The result of something asynchronous; Ctrl-C cancels it and raises KeyboardInterrupt."""

        async def run() -> T:
            return await work

        return self._loop.run(run())

    def ask(self, text: str, show: Callable[[str], None]) -> Said:
        """Put a question and show the answer as it comes. Both become part of the conversation.

        Args:
            text: the question; pictures in it that exist as files go along where the model sees.
            show: gets the pieces of what is to be printed.

        Raises:
            KeyboardInterrupt: the user stopped it; what was said so far stays in the conversation.
            TooLong: the conversation does not fit; the question is not part of it.
        """
        from sizewise.serve.job import Turn

        said = Said()
        question = Turn("user", text, images=self._pictures(text))
        self.turns.append(question)
        try:
            self._answer(said, show)
        except TooLong as error:
            if not self._grow(error):
                self.turns.remove(question)
                raise
            self._answer(said, show)
        finally:
            if said.text or said.done:
                self.turns.append(Turn("assistant", said.text))
        return said

    def _answer(self, said: Said, show: Callable[[str], None]) -> None:
        job = self._job()
        self.wait(self._stream(job, said, show))

    async def _stream(self, job: "Job", said: Said, show: Callable[[str], None]) -> None:
        from sizewise.serve.job import Piece

        begin, thinking = time.monotonic(), False
        stream: Any = self.session.stream(job)
        async with aclosing(stream) as events:
            async for event in events:
                if not isinstance(event, Piece):
                    said.done = event
                    continue
                if said.first_s is None and (event.text or event.thinking):
                    said.first_s = time.monotonic() - begin
                thinking = self._show_thinking(event.thinking, thinking, event.text, show)
                said.thinking += event.thinking
                said.text += event.text
                if event.text:
                    show(event.text)
        said.total_s = time.monotonic() - begin

    def _show_thinking(self, piece: str, thinking: bool, text: str, show: Callable[[str], None]) -> bool:
        """Show thoughts between two lines that say so. Returns whether they go on."""
        if not self.wishes.show_thinking:
            return False
        grey, plain = (_GREY, _PLAIN) if sys.stdout.isatty() else ("", "")
        if piece:
            show(piece if thinking else f"{grey}Thinking...\n{piece}")
            thinking = True
        if text and thinking:
            show(f"\n...done thinking.{plain}\n\n")
            return False
        return thinking

    def _job(self) -> "Job":
        from dataclasses import replace

        from sizewise.serve.job import Job, Turn
        from sizewise.serve.wire.ollama_options import draw_of, stored_options

        wishes = self.wishes
        options = {"temperature": 0.0, "seed": 0, **stored_options(self.model.defaults), **wishes.options}
        draw = draw_of(options, {})
        if wishes.raw or self.model.kind == "linear":
            return Job(prompt=self.turns[-1].content, special=wishes.raw, draw=draw)
        system = (Turn("system", wishes.system),) if wishes.system else ()
        job = Job(turns=(*system, *self.turns), draw=draw, schema=wishes.schema)
        thinks = "thinking" in self.session.capabilities
        if wishes.think is not None and (wishes.think or thinks):
            job = replace(job, think=wishes.think)
        return job

    def _pictures(self, text: str) -> tuple[bytes, ...]:
        if "vision" not in self.session.capabilities:
            return ()
        paths = [Path(match).expanduser() for match in _PICTURE.findall(text)]
        return tuple(path.read_bytes() for path in paths if path.is_file())

    def _context(self, model: Model) -> int:
        """Tokens for prompt and answer: as asked for, as stored with the model, or a usual size."""
        from sizewise.serve.manager import DEFAULT_CONTEXT
        from sizewise.serve.settings import Settings

        told = self.wishes.options.get("num_ctx") or model.defaults.get("num_ctx") or Settings.from_env().context
        most = model.context_length or DEFAULT_CONTEXT
        return min(int(told), most) if told else min(most, DEFAULT_CONTEXT)

    def _grow(self, error: TooLong) -> bool:
        """Load the model with room for a prompt that did not fit; False where it has none or a size was asked for."""
        asked = self.wishes.options.get("num_ctx") or self.model.defaults.get("num_ctx")
        most = self.model.context_length or 0
        if asked or error.tokens >= most or self.session.context >= most:
            return False
        self._open(self.model, min(most, 2 * error.tokens))
        return True

    def _open(self, model: Model, context: int) -> None:
        from sizewise.serve.opening import open_session

        if self._session:
            self._loop.run(self._session.close())
            self._session = None
        begin = time.monotonic()
        threads = len(os.sched_getaffinity(0))
        self._session = self.wait(open_session(model, context=context, parallel=1, threads=threads))
        self.load_s = time.monotonic() - begin


def figures(said: Said, load_s: float) -> list[str]:
    """What an answer took, line by line, as Ollama prints it."""
    done = said.done
    if done is None:
        return [f"total duration:       {said.total_s:.3f}s"]
    lines = {
        "total duration": f"{load_s + said.total_s:.3f}s",
        "load duration": f"{load_s:.3f}s",
        "first token after": f"{said.first_s:.3f}s" if said.first_s is not None else "-",
        "prompt eval count": f"{done.prompt_tokens} token(s)",
        "prompt eval duration": f"{done.prompt_s:.3f}s",
        "prompt eval rate": _rate(done.prompt_tokens - done.cached_tokens, done.prompt_s),
        "eval count": f"{done.completion_tokens} token(s)",
        "eval duration": f"{done.decode_s:.3f}s",
        "eval rate": _rate(done.completion_tokens, done.decode_s),
    }
    return [f"{name + ':':<22}{value}" for name, value in lines.items()]


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.2f} tokens/s" if seconds > 0 else "-"


class Printer:
    """Writes pieces of text to the terminal, broken between words where lines would be too long."""

    def __init__(self, width: int = 0) -> None:
        """`width`: of the terminal; 0 = lines are left as they are."""
        self.width, self.column, self.word = width, 0, ""

    def __call__(self, text: str) -> None:
        """Write a piece. The last word of a line waits until it is whole."""
        if not self.width:
            sys.stdout.write(text)
        else:
            for char in text:
                self._char(char)
        sys.stdout.flush()

    def end(self) -> None:
        """Write what still waits, and end the line."""
        self._word()
        say("")
        self.column = 0

    def _char(self, char: str) -> None:
        if char not in " \n\t":
            self.word += char
            if len(self.word) >= self.width:  # longer than any line: an address, or a language without spaces
                self._word()
            return
        self._word()
        sys.stdout.write(char)
        self.column = 0 if char == "\n" else self.column + 1

    def _word(self) -> None:
        if self.column and self.column + len(self.word) > self.width:
            sys.stdout.write("\n")
            self.column = 0
        sys.stdout.write(self.word)
        self.column += len(self.word)
        self.word = ""
