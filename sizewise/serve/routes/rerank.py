"""POST /v1/rerank: documents in the order in which they answer a query.

A reranker reads query and document together. Other models that were made for embeddings compare their vectors; the
answer says which was done. A language model is not asked: its mean states order documents hardly better than chance.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.core.errors import Unsupported
from sizewise.serve.body import BadField, Fields
from sizewise.serve.capabilities import capabilities_of
from sizewise.serve.routes.common import json_answer, manager_of, read_fields
from sizewise.serve.session import Session
from sizewise.serve.wire import openai

MOST_DOCUMENTS = 1000
Ranked = tuple[str, list[float], int]  # the method, a score for each document, and the tokens read


async def rerank(request: Request) -> Response:
    """POST /v1/rerank."""
    fields = await read_fields(request)
    common = openai.common(fields)
    query, documents = fields.text("query"), _documents(fields)
    top = fields.integer("top_n", len(documents), low=1)
    back = fields.boolean("return_documents", False)
    fields.finish()
    if not query:
        raise BadField("query", "is empty")
    async with manager_of(request).lease(
        common["model"], context=common["context"], keep_alive=common["keep_alive"]
    ) as held:
        method, scores, tokens = await held.run(lambda session: _scored(session, query, documents))
    order = sorted(range(len(documents)), key=lambda i: -scores[i])[:top]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if back:
        results = [{**result, "document": {"text": documents[result["index"]]}} for result in results]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "model": common["model"], "results": results, "usage": usage, "method": method}
    return json_answer(body, fields.warnings)


def _documents(fields: Fields) -> list[str]:
    found = []
    for place, item in enumerate(fields.items("documents", most=MOST_DOCUMENTS)):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise BadField(f"documents[{place}]", "must be a text, or an object with one")
        found.append(text)
    if not found:
        raise BadField("documents", "is empty; there is nothing to order")
    return found


async def _scored(session: Session, query: str, documents: Sequence[str]) -> Ranked:
    made_for = await asyncio.to_thread(capabilities_of, session.model)
    if "rerank" in made_for:
        scores, counts = await session.rank(query, documents)
        return "reranker: the model's own score of query and document together", scores, sum(counts)
    if "embedding" not in made_for:
        raise Unsupported(
            f"{session.model.name} is neither a reranker nor an embedding model: use one of these, such as a GGUF "
            "reranker (pooling type rank) or a sentence encoder"
        )
    vectors, counts = await session.embed([query, *documents], truncate=False)
    similar = vectors[1:] @ vectors[0]
    return "embeddings: cosine similarity of query and document", [float(one) for one in similar], sum(counts)


ROUTES = [Route("/v1/rerank", rerank, methods=["POST"])]
