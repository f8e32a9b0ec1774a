"""run: ask a model once, or talk with it."""

import json as jsonlib
import os
import shutil
import stat
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sizewise.cli.models import GROUP, ModelName
from sizewise.cli.render import Json, print_json, say, warn
from sizewise.core.errors import UsageError

if TYPE_CHECKING:
    from sizewise.cli.talk import Said, Talk

_LONGEST = 512  # tokens of an answer to a question on the command line, unless told otherwise


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("run", rich_help_panel=GROUP)(run)


def run(
    model: ModelName,
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; piped input is appended.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=5, help="0 takes the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    format: Annotated[str, typer.Option(metavar="json|SCHEMA", help="Answer in JSON, or by a JSON schema.")] = "",
    think: Annotated[
        str | None, typer.Option(metavar="[=LEVEL]", help="Think first: true, false, low, medium, high.")
    ] = None,
    hidethinking: Annotated[bool, typer.Option("--hidethinking", help="Do not show the thoughts.")] = False,
    nowordwrap: Annotated[bool, typer.Option("--nowordwrap", help="Do not break lines between words.")] = False,
    keepalive: Annotated[str, typer.Option(help="No effect: the model leaves memory with this command.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain HTTP, if it must be pulled first.")] = False,
    truncate: Annotated[bool, typer.Option(help="Embeddings: cut texts that are too long.")] = True,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Embeddings: keep the first so many.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print what the answer took.")] = False,
    json: Json = False,
) -> None:
    """Ask a model; without a prompt, talk with it. A model that is not here is pulled first if it can be."""
    from sizewise.cli.talk import Talk, Wishes

    told = {"num_predict": max_tokens, "temperature": temperature, "seed": seed}
    wishes = Wishes(
        options={name: value for name, value in told.items() if value is not None},
        system=system,
        schema=schema_of(format),
        think=think_of(think),
        show_thinking=not hidethinking and not json,
        wrap=not nowordwrap,
        verbose=verbose,
        raw=raw,
    )
    if keepalive:
        warn("--keepalive has no effect: the model runs in this process; `sizewise serve` keeps models in memory")
    question = _question(prompt)
    talk = Talk(wishes, insecure=insecure)
    try:
        talk.load(model)
        if "completion" not in talk.session.capabilities:
            _embed(talk, question, truncate, dimensions)
        elif question is None:
            from sizewise.cli.chatting import chat

            chat(talk)
        else:
            _once(talk, question, json)
    finally:
        talk.close()


def spelled_out(arguments: list[str]) -> list[str]:
    """`--think` alone means `--think=true`, as in Ollama; the parser itself would take the next word as its value."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = ["--think=true" if word == "--think" else word for word in arguments[:end]]
    return [*head, *arguments[end:]] if arguments[:1] == ["run"] else arguments


def schema_of(text: str) -> Any:
    """What --format says: nothing, "json", or a JSON schema.

    Raises:
        UsageError: it is none of these.
    """
    if text in ("", "json"):
        return text or None
    try:
        schema = jsonlib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--format {text[:60]!r}: expected json or a JSON schema ({error})") from error
    if not isinstance(schema, dict):
        raise UsageError(f"--format {text[:60]!r}: a JSON schema is an object")
    return schema


def think_of(text: str | None) -> bool | str | None:
    """What --think says.

    Raises:
        UsageError: it is no level.
    """
    known: dict[str, bool | str] = {"true": True, "false": False, "low": "low", "medium": "medium", "high": "high"}
    if text is None:
        return None
    if text.lower() not in known:
        raise UsageError(f"--think={text[:40]}: expected {', '.join(known)}")
    return known[text.lower()]


def _question(words: list[str] | None) -> str | None:
    """The prompt of the command line with what was piped in behind it; None: there is a person to talk with."""
    prompt = " ".join(words) if words else None
    if not sys.stdin.isatty() and (prompt is None or _is_piped()):
        piped = sys.stdin.read()
        prompt = "\n\n".join(part for part in (prompt, piped) if part)
    if prompt is not None and not prompt.strip():
        raise UsageError('the prompt is empty; write `sizewise run MODEL "a question"`')
    return prompt


def _is_piped() -> bool:
    """True where somebody gives input: not for a terminal, /dev/null, or the socket of a service."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # it is no file of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _once(talk: "Talk", question: str, json: bool) -> None:
    from sizewise.cli.talk import Printer, figures

    limited = "num_predict" not in {**talk.model.defaults, **talk.wishes.options}
    if limited:
        talk.wishes.options["num_predict"] = _LONGEST
    width = shutil.get_terminal_size().columns if talk.wishes.wrap and sys.stdout.isatty() else 0
    printer = Printer(width)
    said = talk.ask(question, (lambda _: None) if json else printer)
    if json:
        print_json(_as_json(said))
    else:
        printer.end()
    if talk.wishes.verbose:
        for line in figures(said, talk.load_s):
            print(line, file=sys.stderr)
    if limited and said.done and said.done.finish == "length" and not json:
        warn(f"the answer was cut after {said.done.completion_tokens} tokens; --max-tokens allows more")


def _as_json(said: "Said") -> dict[str, Any]:
    done = said.done
    return {
        "text": said.text,
        **({"thinking": said.thinking} if said.thinking else {}),
        "finish": done.finish if done else "cancelled",
        "prompt_tokens": done.prompt_tokens if done else None,
        "completion_tokens": done.completion_tokens if done else None,
        "first_token_s": said.first_s,
        "total_s": said.total_s,
    }


def _embed(talk: "Talk", text: str | None, truncate: bool, dimensions: int | None) -> None:
    """Print the vector of a text as JSON in one line."""
    import numpy as np

    if text is None:
        raise UsageError(f'{talk.model.name} makes embeddings: write `sizewise run {talk.model.name} "a text"`')
    ((vector, *_), _) = talk.wait(talk.session.embed([text], truncate=truncate))
    if dimensions is not None:
        if dimensions > len(vector):
            raise UsageError(f"--dimensions {dimensions}: the model's vectors have {len(vector)}")
        vector = vector[:dimensions] / max(float(np.linalg.norm(vector[:dimensions])), 1e-12)
    say(jsonlib.dumps([round(float(value), 8) for value in vector]))
