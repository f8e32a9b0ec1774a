"""The interactive form of `run`: lines of a person, answers of a model, and commands that begin with a slash."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sizewise.cli.render import say
from sizewise.cli.running import schema_of, think_of
from sizewise.cli.talk import Printer, Talk, figures
from sizewise.core.errors import SizewiseError, UnknownName, UsageError
from sizewise.core.requests import Message
from sizewise.load.modelfile import parameter_pairs
from sizewise.load.parameters import PARAMETERS, parameter_from_text

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_PROMPT, _MORE, _QUOTES = ">>> ", "... ", '"""'
_HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load another model, with an empty conversation
  /save <name>    Save the model with these settings and this conversation
  /clear          Forget the conversation
  /list           List the models in the store
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for the keyboard

Use \"\"\" to begin a message of several lines, and again to end it.
"""
_HELP_SET = """\
Available Commands:
  /set parameter <name> <value>   Set a parameter, such as temperature 0.5
  /set system <text>              Set the system message
  /set history | nohistory        Keep what you write for the next time, or not
  /set wordwrap | nowordwrap      Break lines between words, or not
  /set format json | noformat     Answer in JSON, or freely
  /set verbose | quiet            Show what an answer took, or not
  /set think [level] | nothink    Think first, or not
"""
_HELP_SHOW = """\
Available Commands:
  /show info         What the model is
  /show license      Its licence
  /show modelfile    Its Modelfile
  /show parameters   Its parameters, and those that you set
  /show system       The system message
  /show template     The chat template
"""
_HELP_SHORTCUTS = """\
  Ctrl-C   Stop the answer; at the prompt: clear the line
  Ctrl-D   Exit
  Ctrl-L   Clear the screen
  Up, Down What you wrote before
  Ctrl-R   Search in it
"""


def chat(talk: Talk) -> None:
    """Talk until the person ends it. Errors are told, and the talk goes on."""
    Chat(talk).run()


class Chat:
    """One conversation at a terminal."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.lines = _Lines()

    def run(self) -> None:
        """Read, answer, repeat."""
        if self.lines.fancy:
            say("Send a message (/? for help)")
        for text in self.messages():
            try:
                if not text.startswith("/"):
                    self.answer(text)
                elif text.split()[0] in ("/bye", "/exit"):
                    return
                else:
                    self.command(text)
            except SizewiseError as error:
                say(f"error: {error}")
            except KeyboardInterrupt:
                say("\n(stopped)")

    def messages(self) -> Iterator[str]:
        """What the person writes: single lines, and several between triple quotation marks."""
        while (line := self.lines.read(_PROMPT)) is not None:
            if line.strip().startswith(_QUOTES):
                line = self._rest(line.strip().removeprefix(_QUOTES))
            if line.strip():
                yield line.strip()

    def _rest(self, text: str) -> str:
        """The lines up to the one that ends the quotation."""
        while not text.rstrip().endswith(_QUOTES):
            line = self.lines.read(_MORE)
            if line is None:
                return text
            text += "\n" + line
        return text.rstrip().removesuffix(_QUOTES)

    def answer(self, text: str) -> None:
        """Ask, and print the answer as it comes."""
        wrap = self.talk.wishes.wrap and sys.stdout.isatty()
        printer = Printer(shutil.get_terminal_size().columns if wrap else 0)
        said = self.talk.ask(text, printer)
        printer.end()
        say("")
        if self.talk.wishes.verbose:
            for line in figures(said, 0.0):
                say(line)

    def command(self, text: str) -> None:
        """Do what a line with a slash says.

        Raises:
            UsageError: it says nothing that is known.
        """
        word, _, rest = text.partition(" ")
        known: dict[str, Callable[[str], None]] = {
            "/set": self.set,
            "/show": self.show,
            "/load": self.load,
            "/save": self.save,
            "/clear": self.clear,
            "/list": self.list,
            "/?": self.help,
            "/help": self.help,
        }
        if word not in known:
            raise UnknownName("command", word, known, remedy="/? lists them")
        known[word](rest.strip())

    def help(self, topic: str) -> None:
        """Say what can be written."""
        topics = {"set": _HELP_SET, "/set": _HELP_SET, "show": _HELP_SHOW, "/show": _HELP_SHOW}
        topics["shortcuts"] = _HELP_SHORTCUTS
        say(topics.get(topic, _HELP))

    def clear(self, _: str) -> None:
        """Begin a new conversation."""
        self.talk.turns.clear()
        say("The conversation is forgotten.")

    def list(self, _: str) -> None:
        """The models in the store."""
        from sizewise.cli.models import list_

        list_(None)

    def load(self, name: str) -> None:
        """Another model, and a new conversation."""
        if not name:
            raise UsageError("/load needs the name of a model")
        self.talk.load(name)
        self.talk.turns.clear()
        say(f"Loaded {self.talk.model.name}.")

    def save(self, name: str) -> None:
        """The model under a new name, with what was set and said here."""
        from sizewise.load.create import create, parts_of
        from sizewise.load.modelfile import Modelfile

        if not name:
            raise UsageError("/save needs a name")
        talk = self.talk
        source = talk.model.name if talk.model.kind != "endpoint" else ""
        if not source:
            raise UsageError(f"{talk.model.name} is an endpoint: there is nothing here that could be saved")
        parts = parts_of(Modelfile(sources=[source]), Path.cwd(), talk.store)
        parts.system, parts.parameters = talk.wishes.system, dict(talk.wishes.options)
        said = tuple(Message(turn.role, turn.content) for turn in talk.turns if turn.role != "tool")
        parts.messages = (*talk.model.messages, *said)
        say(f"Created new model {create(name, parts, talk.store).name!r}.")

    def set(self, text: str) -> None:
        """Change how the next answers are made."""
        word, _, rest = text.partition(" ")
        if not word:
            say(_HELP_SET)
            return
        rest, wishes = rest.strip(), self.talk.wishes
        switches: dict[str, Callable[[], None]] = {
            "verbose": lambda: setattr(wishes, "verbose", True),
            "quiet": lambda: setattr(wishes, "verbose", False),
            "wordwrap": lambda: setattr(wishes, "wrap", True),
            "nowordwrap": lambda: setattr(wishes, "wrap", False),
            "noformat": lambda: setattr(wishes, "schema", None),
            "nothink": lambda: setattr(wishes, "think", False),
            "history": lambda: self.lines.remember(True),
            "nohistory": lambda: self.lines.remember(False),
        }
        if word == "parameter":
            self._set_parameter(rest)
        elif word == "system":
            if not rest:
                raise UsageError("/set system needs a text")
            wishes.system = rest.removeprefix(_QUOTES).removesuffix(_QUOTES)
            say("Set system message.")
        elif word == "format":
            wishes.schema = schema_of(rest or "json")
            say("Set format.")
        elif word == "think":
            wishes.think = think_of(rest or "true")
            say(f"Set think mode {rest or 'on'}.")
        elif word in switches:
            switches[word]()
            say(f"Set {word}.")
        else:
            known = ("parameter", "system", "format", "think", *switches)
            raise UnknownName("variable", word, known, remedy="/? set lists them")

    def _set_parameter(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not value.strip():
            say("Available parameters: " + ", ".join(PARAMETERS))
            return
        made = parameter_from_text(name.lower(), value.strip().strip('"'))
        options = self.talk.wishes.options
        options[name] = [*options.get("stop", []), *made] if name == "stop" else made
        if name == "num_ctx":
            self.talk.reload()
        say(f"Set parameter {name!r} to {value.strip()!r}.")

    def show(self, topic: str) -> None:
        """What the model is."""
        from sizewise.cli.models import part_of, show_facts

        model, wishes = self.talk.model, self.talk.wishes
        if topic == "info":
            show_facts(model)
        elif topic == "parameters":
            for title, values in (("Model", model.defaults), ("Set here", wishes.options)):
                say(f"{title}:")
                for name, value in parameter_pairs(values):
                    say(f"  {name:<18} {value}")
        elif topic in ("system", "license", "template", "modelfile"):
            text = (topic == "system" and wishes.system) or part_of(model, topic)
            say(text or f"No {topic} is set for this model.")
        else:
            say(_HELP_SHOW)


class _Lines:
    """Lines from a terminal, with editing and history where answers go to it, too."""

    def __init__(self) -> None:
        self.fancy = sys.stdin.isatty() and sys.stdout.isatty()
        self._keep = True
        self._session: PromptSession[str] | None = None

    def remember(self, keep: bool) -> None:
        """Whether further lines go into the history file."""
        self._keep, self._session = keep, None

    def read(self, prompt: str) -> str | None:
        """One line; None at the end. Ctrl-C gives an empty one."""
        try:
            return self._edited(prompt) if self.fancy else input(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            say("\nUse Ctrl-D or /bye to exit.")
            return ""

    def _edited(self, prompt: str) -> str:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        from sizewise.load.home import home

        if self._session is None:
            path = home() / "history"
            if self._keep:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
            self._session = PromptSession(history=FileHistory(str(path)) if self._keep else InMemoryHistory())
        return str(self._session.prompt(prompt))
