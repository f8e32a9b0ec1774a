"""`sizewise make METHOD`: flags, bounds and help come from each method's signature."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from sizewise.cli.models import complete_name, describe
from sizewise.cli.render import Json, print_json, print_table, progress, say
from sizewise.core.params import Parameter, schema_of
from sizewise.core.units import format_bytes

GROUP = "Make"

Base = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", autocompletion=complete_name, help="The model to start.")
]
Name = Annotated[str, typer.Option("--name", help="Name of the model that is made.")]
TaskFile = Annotated[str | None, typer.Option("--task", help="Task file, for methods that learn from its rows.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]


def register(app: typer.Typer, *, with_methods: bool) -> None:
    """Add `make`; its methods only when they are asked for."""
    group = typer.Typer(no_args_is_help=True, help="Make a smaller model: one method, one command.")
    app.add_typer(group, name="make", rich_help_panel=GROUP)

    @group.callback(invoke_without_command=True)
    def make(
        context: typer.Context,
        list_: Annotated[bool, typer.Option("--list", help="List the methods with their options.")] = False,
        json: Json = False,
    ) -> None:
        """Make a smaller model: one method, one command."""
        if list_ and context.invoked_subcommand is None:
            _list_methods(json)

    if with_methods:
        from sizewise.make.method import methods

        registry = methods()
        for name in registry.names():
            group.command(name)(_command(name, registry.get(name)))


def _list_methods(json: bool) -> None:
    from sizewise.make.method import methods

    registry = methods()
    rows: list[dict[str, Any]] = []
    for name in registry.names():
        function = registry.get(name)
        summary = (inspect.getdoc(function) or "").split("\n")[0]
        rows.append({"method": name, "summary": summary, "options": [_option(p) for p in schema_of(function)]})
    if json:
        print_json(rows)
        return
    cells = [[row["method"], row["summary"], " ".join(f"--{o['name']}" for o in row["options"])] for row in rows]
    print_table([("METHOD", "left"), ("WHAT IT DOES", "left"), ("OPTIONS", "left")], cells)


def _option(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name.replace("_", "-"),
        "type": parameter.type.__name__,
        "default": None if parameter.required else parameter.default,
        "choices": list(parameter.choices),
        "low": parameter.range.low,
        "high": parameter.range.high,
        "search": list(parameter.search),
        "help": parameter.help,
    }


def _command(name: str, function: Callable[..., Any]) -> Callable[..., None]:
    """A command whose signature is the method's options plus model, name, task and seed."""

    def command(**given: Any) -> None:
        json = given.pop("json")
        base, new_name, task, seed = (given.pop(key) for key in ("model", "name", "task", "seed"))
        _make(name, base, new_name, task, seed, given, json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    fixed = [("model", Base, None), ("name", Name, ...), ("task", TaskFile, None), ("seed", Seed, 0)]
    signature = [
        inspect.Parameter(key, keyword, annotation=hint, **({} if default is ... else {"default": default}))
        for key, hint, default in fixed
    ]
    signature += [_flag(parameter) for parameter in schema_of(function)]
    signature.append(inspect.Parameter("json", keyword, annotation=Json, default=False))
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    command.__doc__ = (inspect.getdoc(function) or "").split("\nArgs:")[0]
    return command


def _flag(parameter: Parameter) -> inspect.Parameter:
    hint: Any = Literal[parameter.choices] if parameter.choices else parameter.type
    if parameter.optional:
        hint = hint | None
    bounds: dict[str, Any] = {}
    if parameter.type in (int, float):
        bounds = {"min": parameter.range.low, "max": parameter.range.high}
    option = typer.Option(f"--{parameter.name.replace('_', '-')}", help=parameter.help or None, **bounds)
    default = {} if parameter.required else {"default": parameter.default}
    return inspect.Parameter(
        parameter.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[hint, option], **default
    )


def _make(
    method: str, base: str | None, name: str, task: str | None, seed: int, options: dict[str, Any], json: bool
) -> None:
    from sizewise.load.tasks.file import load_task
    from sizewise.make.apply import make

    loaded = load_task(task) if task else None
    with progress() as listen:
        model = make(method, base, name=name, options=options, task=loaded, seed=seed, listen=listen)
    if json:
        print_json(describe(model))
        return
    ratio = model.lineage.figures.get("compression_ratio")
    shrunk = f", {ratio:.3g} of what it was" if isinstance(ratio, (int, float)) else ""
    say(f"{model.name}: {format_bytes(model.size_bytes)}{shrunk}. `sizewise show {model.name}` tells how it was made.")
