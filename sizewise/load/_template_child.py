"""The process that renders chat templates: a sandbox for the language around it, limits of the system for the rest."""

import json
import resource
import signal
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sizewise.core.errors import BadModel, Unsafe
from sizewise.load.child import Host

CPU_S = 2.0  # of one rendering
MEMORY_BYTES = 1 << 30
MOST_OUTPUT = 4 << 20  # characters


class Refused(Exception):
    """The template called raise_exception."""


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training; here it only passes its body on."""

    tags = {"generation"}  # noqa: RUF012 (the type that Jinja declares)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Parse up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face templates expect it."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    # not Jinja's own: that one writes < and & as escapes for HTML
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> str:
    raise Refused(message)


def render(template: str, messages: list[dict[str, str]], bos: str, eos: str, add_generation_prompt: bool) -> Any:
    """Render a template; {"text": ...} or, where the template itself says no, {"refused": its reason}.

    Raises:
        BadModel: the template has an error or writes too much.
        Unsafe: it reached for what the sandbox forbids.
    """
    # The signal's default action ends this process, also in the middle of a long C function.
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        pieces = (
            environment()
            .from_string(template)
            .generate(
                messages=messages,
                bos_token=bos,
                eos_token=eos,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
        )
        text = ""
        for piece in pieces:
            text += piece
            if len(text) > MOST_OUTPUT:
                raise BadModel(f"the chat template writes more than {MOST_OUTPUT} characters")
    except Refused as error:
        return {"refused": _line(error)}
    except SecurityError as error:
        raise Unsafe(f"the chat template reaches for what it may not have: {_line(error)}") from error
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise BadModel(f"the chat template has an error{where}: {_line(error)}") from error
    except (MemoryError, RecursionError) as error:
        raise BadModel("the chat template needs more time or memory than any real one: not rendered") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"text": text}


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Host().serve({"render": render})
