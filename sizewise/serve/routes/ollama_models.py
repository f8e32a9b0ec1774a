"""Ollama's endpoints about models: list, show, what is loaded, copy, delete, and the version."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise import __version__
from sizewise.core.errors import SizewiseError
from sizewise.core.model import Model
from sizewise.core.references import parse_name
from sizewise.load.models import find_stored
from sizewise.load.store.manifest import Manifest
from sizewise.load.store.store import Store
from sizewise.serve.capabilities import capabilities_of
from sizewise.serve.manager import Loaded
from sizewise.serve.routes.common import json_answer, manager_of, read_fields
from sizewise.serve.wire.ollama import read_model
from sizewise.serve.wire.ollama_models import ps_entry, show_body, tags_entry

OLLAMA_VERSION = "0.33.0"  # whose API this is: clients ask before they use newer parts of it


async def version(request: Request) -> Response:
    """GET /api/version."""
    return json_answer({"version": OLLAMA_VERSION, "sizewise": __version__})


async def tags(request: Request) -> Response:
    """GET /api/tags: the models of the store."""
    return json_answer({"models": await asyncio.to_thread(_tags, manager_of(request).store)})


async def ps(request: Request) -> Response:
    """GET /api/ps: the loaded models, those that stay longest first."""
    manager = manager_of(request)
    return json_answer({"models": await asyncio.to_thread(_ps, manager.loaded(), manager.store)})


async def show(request: Request) -> Response:
    """POST /api/show: all that is known of a model."""
    fields = await read_fields(request)
    name, verbose = _name(fields), fields.boolean("verbose", False)
    fields.without_effect(("system", "template", "options"))
    fields.finish()
    body = await asyncio.to_thread(_show, name, manager_of(request).store, verbose)
    return json_answer(body, fields.warnings)


async def copy(request: Request) -> Response:
    """POST /api/copy: a second name for a model."""
    fields, manager = await read_fields(request), manager_of(request)
    source, target = read_model(fields, "source"), parse_name(read_model(fields, "destination"))
    fields.finish()
    await asyncio.to_thread(manager.find, source)
    await asyncio.to_thread(manager.store.copy, parse_name(source), target)
    return Response(status_code=200)


async def delete(request: Request) -> Response:
    """DELETE /api/delete: unload a model and take its name away."""
    fields, manager = await read_fields(request), manager_of(request)
    name = _name(fields)
    fields.finish()
    await asyncio.to_thread(manager.find, name)
    await manager.unload(name)
    await asyncio.to_thread(manager.store.remove, parse_name(name))
    return Response(status_code=200)


def _name(fields: Any) -> str:
    """`model`, or `name` as older clients call it."""
    older: str = fields.text("name", "", most=1000)
    return older if older and not fields.raw("model") else read_model(fields)


def _tags(store: Store) -> list[dict[str, Any]]:
    """Whole models, the youngest first; `doctor` tells about damaged ones."""
    found = []
    for manifest in sorted(store.list(), key=lambda one: one.modified_at, reverse=True):
        try:
            model = find_stored(manifest.name, store)
            found.append(tags_entry(manifest, model, capabilities_of(model)))
        except (SizewiseError, OSError):  # the others must still be listed
            continue
    return found


def _ps(loaded: list[Loaded], store: Store) -> list[dict[str, Any]]:
    found = []
    for one in loaded:
        name = parse_name(one.name)
        try:
            digest = store.get(name).digest
        except (SizewiseError, OSError):  # its name was taken away, or means another model, while it is loaded
            digest = one.model.digest
        entry = ps_entry(
            str(name), one.model, digest, memory=one.memory_bytes, expires_at=one.expires_at, context=one.context
        )
        found.append(entry)
    return found


def _show(name: str, store: Store, verbose: bool) -> dict[str, Any]:
    parsed = parse_name(name)
    model: Model = find_stored(parsed, store)
    manifest: Manifest = store.get(parsed)
    return show_body(manifest, model, capabilities_of(model), verbose=verbose)


ROUTES = [
    Route("/api/version", version, methods=["GET"]),
    Route("/api/tags", tags, methods=["GET"]),
    Route("/api/ps", ps, methods=["GET"]),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/copy", copy, methods=["POST"]),
    Route("/api/delete", delete, methods=["DELETE"]),
]
