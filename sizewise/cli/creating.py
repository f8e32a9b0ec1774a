"""create and push: models made from Modelfiles, and models sent to registries."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sizewise.cli.models import GROUP, ModelName, describe
from sizewise.cli.render import Json, print_json, progress, say, warn
from sizewise.core.errors import StorageError, UsageError
from sizewise.core.events import Progress
from sizewise.core.units import format_bytes

_MOST_BYTES = 8_000_000


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("create", rich_help_panel=GROUP)(create)
    app.command("push", rich_help_panel=GROUP)(push)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new model's name.")],
    file: Annotated[Path, typer.Option("--file", "-f", help="The Modelfile; - reads it from stdin.")] = Path(
        "Modelfile"
    ),
    quantize: Annotated[str, typer.Option("--quantize", "-q", help="Pack the weights: q4_K_M, q8_0, ...")] = "",
    json: Json = False,
) -> None:
    """Make a model from a Modelfile."""
    from sizewise.core.references import parse_name
    from sizewise.load.create import create as make
    from sizewise.load.create import parts_of
    from sizewise.load.modelfile import parse
    from sizewise.load.store.store import Store
    from sizewise.serve.quantizing import quantizer

    parse_name(name)
    packer = quantizer(quantize) if quantize else None
    made = parse(_read(file), file.name if str(file) != "-" else "Modelfile")
    folder = file.parent if str(file) != "-" else Path.cwd()
    store = Store()
    with progress() as listen:

        def hear(event: Progress) -> None:
            if event.unit:
                listen(event)
            elif not json:
                say(event.what)

        parts = parts_of(made, folder, store, listen)
        model = make(name, parts, store, quantizer=packer, listen=hear)
    for warning in (*parts.warnings, *model.warnings):
        warn(warning)
    if json:
        print_json(describe(model))
    else:
        say(f"{model.name}: {format_bytes(model.size_bytes)}, {model.quantization or model.kind}, {model.digest[7:19]}")


def push(
    model: ModelName,
    insecure: Annotated[bool, typer.Option("--insecure", help="Speak plain HTTP with another machine.")] = False,
) -> None:
    """Send a model to the registry in its name, host/namespace/model:tag (`sizewise cp` gives it such a name)."""
    from sizewise.load.push import push as send

    with progress() as listen:
        reached = send(model, insecure=insecure, listen=lambda event: listen(event) if event.unit else None)
    say(f"{model} is now at {reached}")


def _read(file: Path) -> str:
    """The text of a Modelfile.

    Raises:
        UsageError: there is none, or it is no text.
    """
    if str(file) == "-":
        return sys.stdin.read(_MOST_BYTES)
    if not file.is_file():
        raise UsageError(f"{file}: there is no such file; -f names the Modelfile")
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(_MOST_BYTES)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error
