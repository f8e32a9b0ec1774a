"""The server, and what is asked of a running one: serve, ps, stop."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sizewise.cli.models import ModelName
from sizewise.cli.render import Json, print_json, print_table, say
from sizewise.core.errors import StateError, UnknownName, UsageError
from sizewise.core.units import format_bytes

if TYPE_CHECKING:
    import httpx

GROUP = "Serve"
_TIMEOUT_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("serve", rich_help_panel=GROUP)(serve)
    app.command("start", hidden=True)(serve)
    app.command("ps", rich_help_panel=GROUP)(ps)
    app.command("stop", rich_help_panel=GROUP)(stop)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen at; another than 127.0.0.1 needs a key.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Key that requests must show; may be given several times.")
    ] = None,
    parallel: Annotated[int | None, typer.Option(min=1, max=64, help="Requests that a model answers at once.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context where a request names none.")] = None,
    keep_alive: Annotated[
        str | None, typer.Option(help="How long a model stays after its last request: 5m, -1.")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(min=0, help="Requests that may wait.")] = None,
    max_loaded: Annotated[int | None, typer.Option(min=1, help="Models in memory at once.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each engine; all cores if not given.")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="Log where faults arise.")] = False,
) -> None:
    """Serve the models of the store through the APIs of Ollama and OpenAI.

    What no option says is taken from OLLAMA_HOST, OLLAMA_KEEP_ALIVE, OLLAMA_CONTEXT_LENGTH, OLLAMA_NUM_PARALLEL,
    OLLAMA_MAX_LOADED_MODELS, OLLAMA_MAX_QUEUE, OLLAMA_LOAD_TIMEOUT, OLLAMA_ORIGINS, OLLAMA_DEBUG, SIZEWISE_API_KEY.
    """
    from sizewise.serve.server import serve as run
    from sizewise.serve.settings import Settings, parse_duration

    told: dict[str, Any] = {
        "host": host,
        "port": port,
        "parallel": parallel,
        "context": context,
        "max_queue": max_queue,
        "max_loaded": max_loaded,
        "threads": threads,
        "api_keys": tuple(key for key in api_key if key) if api_key else None,
        "dev": dev or None,
    }
    settings = replace(Settings.from_env(), **{name: value for name, value in told.items() if value is not None})
    if keep_alive is not None:
        settings = replace(settings, keep_alive_s=parse_duration(keep_alive))
    raise typer.Exit(run(settings))


def ps(json: Json = False) -> None:
    """List the models that are in memory at the server."""
    models = _ask("GET", "/api/ps").json().get("models", [])
    if json:
        print_json(models)
        return
    rows = [
        [
            model["name"],
            str(model.get("digest", "")).removeprefix("sha256:")[:12],
            format_bytes(model.get("size", 0)),
            _processor(model.get("size", 0), model.get("size_vram", 0)),
            str(model.get("context_length", "-")),
            _until(model.get("expires_at")),
        ]
        for model in models
    ]
    columns = [("NAME", "left"), ("ID", "left"), ("SIZE", "right"), ("PROCESSOR", "left"), ("CONTEXT", "right")]
    print_table([*columns, ("UNTIL", "left")], rows)


def stop(model: ModelName) -> None:
    """Unload a model at the server, once its answers have ended."""
    answer = _ask("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
    answer.raise_for_status()
    say(f"stopped {model}")


def _ask(method: str, path: str, body: dict[str, Any] | None = None) -> "httpx.Response":
    """Ask the server at `OLLAMA_HOST`.

    Raises:
        StateError: no server answers there.
        UnknownName, UsageError: it refuses.
    """
    import os

    import httpx

    from sizewise.serve.settings import parse_host

    host, port = parse_host(os.environ.get("OLLAMA_HOST", ""))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if os.environ.get("OLLAMA_HOST", "").startswith("https://") else "http"
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    key = os.environ.get("SIZEWISE_API_KEY") or os.environ.get("OLLAMA_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.request(method, address + path, json=body, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise StateError(f"no server answers at {address}; `sizewise serve` starts one") from error
    if answer.is_success:
        return answer
    try:
        message = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server at {address} answered {answer.status_code}"
    if answer.status_code == 404 and body and "model" in body:
        raise UnknownName("model at the server", str(body["model"]))
    raise UsageError(message) if answer.status_code < 500 else StateError(message)


def _processor(size: int, on_gpu: int) -> str:
    if not on_gpu or not size:
        return "100% CPU"
    share = round(100 * min(1.0, on_gpu / size))
    return "100% GPU" if share == 100 else f"{100 - share}%/{share}% CPU/GPU"


def _until(text: str | None) -> str:
    """When it is unloaded, as people say it."""
    from datetime import UTC, datetime

    if not text:
        return "Forever"
    until: datetime = datetime.fromisoformat(text)
    seconds = (until - datetime.now(UTC)).total_seconds()
    if seconds > 10 * 365 * 86400:
        return "Forever"
    if seconds <= 0:
        return "Stopping..."
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {name}{'s' if count > 1 else ''} from now"
    return "Less than a second from now"
