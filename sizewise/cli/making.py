"""`sizewise make METHOD`, with flags, bounds and help from the method's signature; `sizewise make FILE.toml`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from sizewise.cli.accounting import Account, How, filled_in
from sizewise.cli.models import complete_name, describe
from sizewise.cli.render import Json, print_json, print_table, progress, say
from sizewise.core.model import Model
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
    group = typer.Typer(
        cls=_MethodsAndFiles, no_args_is_help=True, help="Make a smaller model: one method, one command."
    )
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
        group.command("recipe")(_recipe)


class _MethodsAndFiles(TyperGroup):
    """`make chain.toml ...` is `make recipe chain.toml ...`, as `eval task.toml` takes a file."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names."""
        return super().resolve_command(ctx, ["recipe", *args] if args[0].endswith(".toml") else args)


def _recipe(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The recipe, a .toml file.")],
    model: Annotated[str, typer.Argument(autocompletion=complete_name, help="The model to start.")],
    name: Name,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed, in place of the recipe's.")] = None,
    account: Account = "quick",
    json: Json = False,
) -> None:
    """Apply a chain of methods: each step of a TOML file names a method and its options.

    The word `recipe` can be left out: sizewise make chain.toml MODEL --name NAME. A chain that was interrupted goes on
    with the step that it was at.
    """
    from sizewise.make.recipes import load_recipe, make_chain

    chain = load_recipe(file)
    with progress() as listen:
        made = make_chain(chain, model, name=name, seed=seed, listen=listen)
    _tell(made, account, json)


def _list_methods(json: bool) -> None:
    from sizewise.make.method import methods

    registry = methods()
    rows: list[dict[str, Any]] = []
    for name in registry.names():
        function = registry.get(name)
        summary = (inspect.getdoc(function) or "").split("\n")[0]
        options = [_option(parameter) for parameter in _options_of(function)]
        rows.append({"method": name, "summary": summary, "options": options})
    if json:
        print_json(rows)
        return
    cells = [[row["method"], row["summary"], " ".join(f"--{o['name']}" for o in row["options"])] for row in rows]
    print_table([("METHOD", "left"), ("WHAT IT DOES", "left"), ("OPTIONS", "left")], cells)


def _options_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The method's own options, then those of the walk that mean something for it."""
    from sizewise.make.shrink import settings_of

    return (*schema_of(function), *settings_of(function))


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
        account = given.pop("account")
        _tell(_make(name, base, new_name, task, seed, given), account, json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    fixed: list[tuple[str, Any, Any]] = [
        ("model", Base, None),
        ("name", Name, ...),
        ("task", TaskFile, None),
        ("seed", Seed, 0),
    ]
    fixed += [("account", Account, "quick")]
    signature = [
        inspect.Parameter(key, keyword, annotation=hint, **({} if default is ... else {"default": default}))
        for key, hint, default in fixed
    ]
    signature += [_flag(parameter) for parameter in _options_of(function)]
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
    flag = parameter.name.replace("_", "-")
    # what is on unless told otherwise needs a word to turn it off
    spelled = f"--{flag}/--no-{flag}" if parameter.type is bool and parameter.default else f"--{flag}"
    option = typer.Option(spelled, help=parameter.help or None, **bounds)
    default = {} if parameter.required else {"default": parameter.default}
    return inspect.Parameter(
        parameter.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[hint, option], **default
    )


def _make(method: str, base: str | None, name: str, task: str | None, seed: int, options: dict[str, Any]) -> Model:
    from sizewise.load.tasks.file import load_task
    from sizewise.make.apply import make

    loaded = load_task(task) if task else None
    with progress() as listen:
        return make(method, base, name=name, options=options, task=loaded, seed=seed, listen=listen)


def _tell(model: Model, account: How, json: bool) -> None:
    """Say what was made, then measure it."""
    if json:
        print_json(describe(filled_in(model, account, json=True)))
        return
    ratio = model.lineage.figures.get("compression_ratio")
    shrunk = f", {ratio:.3g} of what it was" if isinstance(ratio, (int, float)) else ""
    say(f"{model.name}: {format_bytes(model.size_bytes)}{shrunk}. `sizewise show {model.name}` tells how it was made.")
    filled_in(model, account, json=False)
