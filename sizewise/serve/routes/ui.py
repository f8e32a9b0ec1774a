"""The web page at `/ui`: its files, the reports, and the JSON that the public API has no place for."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.references import parse_name
from sizewise.load.home import ledger_file
from sizewise.load.models import find_model
from sizewise.measure.ledger import Ledger
from sizewise.measure.votes import MOST, Shown, put_vote, tallies
from sizewise.serve.body import BadField
from sizewise.serve.errors import HttpError
from sizewise.serve.routes.common import json_answer, manager_of, read_fields
from sizewise.serve.ui.files import HEADERS, TYPES, file
from sizewise.serve.ui.gallery import gallery, votes_json
from sizewise.serve.ui.meters import nothing_read, read_meters
from sizewise.serve.ui.shelf import report_page, shelf

_PREFIX = "/ui/"
_VERDICTS = ("best", "tie", "none")
_LONGEST_PROMPT = 1_000_000


async def page(request: Request) -> Response:
    """One file of the page."""
    name = request.url.path.removeprefix(_PREFIX) if request.url.path.startswith(_PREFIX) else ""
    found = await run_in_threadpool(file, name or "index.html")
    headers = HEADERS | {"ETag": found.tag}
    if found.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.type, headers=headers)


async def models(request: Request) -> Response:
    """Models with size, quality, votes and lineage, and all evaluations."""
    body = await run_in_threadpool(gallery, request.app.state.store, ledger_file())
    held = {loaded.model.digest: loaded for loaded in manager_of(request).loaded()}
    for model in body["models"]:
        if loaded := held.get(model["digest"]):
            model["loaded"] = {"memory_bytes": loaded.memory_bytes, "context": loaded.context}
    return json_answer(body)


async def meters(request: Request) -> Response:
    """What a loaded model's processes have used so far. Read before and after an answer."""
    name = request.query_params.get("model", "")[:500]
    model = await run_in_threadpool(find_model, str(parse_name(name)), request.app.state.store)
    for loaded in manager_of(request).loaded():
        if loaded.model.digest == model.digest:  # one process serves a model under all its names
            return json_answer(await run_in_threadpool(read_meters, loaded.session.pids(), loaded.memory_bytes))
    return json_answer(nothing_read("the model is not loaded"))


async def vote(request: Request) -> Response:
    """Keep which of the models shown answered best."""
    fields = await read_fields(request)
    names = fields.strings("models", most=MOST)
    verdict = fields.choice("verdict", _VERDICTS)
    winner = fields.text("winner", None, most=500)
    prompt = fields.text("prompt", most=_LONGEST_PROMPT)
    fields.finish()
    if winner is not None and winner not in names:
        raise BadField("winner", "is none of the models shown")
    body = await run_in_threadpool(_keep_vote, request, names, verdict, winner, prompt)
    return json_answer(body, fields.warnings, 201)


def _keep_vote(request: Request, names: list[str], verdict: Any, winner: str | None, prompt: str) -> dict[str, Any]:
    digests = {name: find_model(str(parse_name(name)), request.app.state.store).digest for name in names}
    if len(digests) < len(names):
        raise UsageError("a model is named twice")
    with Ledger(ledger_file()) as ledger:
        shown = [Shown(digest, name) for name, digest in digests.items()]
        put_vote(ledger, shown, verdict, digests[winner] if winner else None, prompt)
        standing = tallies(ledger)
    return {"votes": {name: votes_json(standing[digest]) for name, digest in digests.items()}}


async def reports(request: Request) -> Response:
    """The list of past fits and comparisons."""
    return json_answer({"reports": await run_in_threadpool(shelf)})


async def report(request: Request) -> Response:
    """One report, as a page in a sandbox of its own."""
    try:
        content, policy = await run_in_threadpool(report_page, request.path_params["identity"])
    except UnknownName as error:
        raise HttpError(404, "there is no such report") from error
    headers = HEADERS | {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


ROUTES = [
    Route("/ui", page, methods=["GET"]),
    Route(_PREFIX, page, methods=["GET"]),
    *(Route(_PREFIX + name, page, methods=["GET"]) for name in TYPES),
    Route("/ui/api/models", models, methods=["GET"]),
    Route("/ui/api/meters", meters, methods=["GET"]),
    Route("/ui/api/votes", vote, methods=["POST"]),
    Route("/ui/api/reports", reports, methods=["GET"]),
    Route("/ui/reports/{identity}", report, methods=["GET"]),
]
