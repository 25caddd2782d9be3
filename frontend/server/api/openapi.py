"""GET /openapi.json and GET /docs: the interface described, from the types that bodies are decoded to and the table of routes."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.server.api.describable import Describable, refused_fields
from frontend.server.api.fields import FIELDS
from frontend.server.api.page import page
from frontend.server.api.routes import Operation

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"
_ABOUT = (
    "OpenAI's interface, Anthropic's messages, and what else the engine tells. Fields that are not listed are ignored; those that "
    "are known and not supported are refused by name where they ask for something."
)


def describe(operations: Sequence[Operation]) -> Json:
    """The OpenAPI 3.1 document."""
    schemas, components = _schemas(operations)
    paths: dict[str, Json] = {}
    for operation in operations:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "twodeep", "version": version("twodeep"), "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Where the engine was given keys."}},
        },
    }


def _schemas(operations: Iterable[Operation]) -> tuple[dict[Any, Json], dict[str, Json]]:
    """The reference to each type that an operation names, and what they refer to."""
    describable = Describable()
    kinds: dict[Any, Any] = {}
    for operation in operations:
        for kind in (operation.body, operation.answer, operation.events, operation.error):
            if kind is not None and not isinstance(kind, str):
                kinds[kind] = describable.of(kind)
    references, components = msgspec.json.schema_components(kinds.values(), ref_template=_REFERENCE)
    for component in components.values():
        for name, schema in component.get("properties", {}).items():
            if name in FIELDS and component["title"].endswith("Request"):
                _limit(schema, FIELDS[name])
    for kind in kinds:
        if refused := refused_fields(kind):
            text = f"Refused where they ask for something: {', '.join(refused)}."
            component = components[kind.__name__]
            component["description"] = f"{component.get('description', '')} {text}".strip()
    return dict(zip(kinds, references, strict=True)), components


def _limit(schema: Json, limits: Json) -> None:
    """Adds a field's limits to the part of its schema that is no null; its description to the whole."""
    limits = dict(limits)
    if "description" in limits:
        schema["description"] = limits.pop("description")
    for part in schema.get("anyOf", [schema]):
        if part.get("type") != "null":
            part |= {key: value for key, value in limits.items() if _fits(key, part.get("type"))}


def _fits(keyword: str, kind: str | None) -> bool:
    if keyword.lower().endswith("imum"):
        return kind in ("integer", "number")
    return kind == ("string" if keyword.endswith("Length") else "array" if keyword.endswith("Items") else "object")


def _operation(operation: Operation, path: str, schemas: dict[Any, Json]) -> Json:
    described: Json = {
        "operationId": operation.method.lower() + path.translate(str.maketrans("/.{}", "____")).rstrip("_"),
        "summary": operation.summary,
        "tags": [operation.group],
        "responses": _responses(operation, schemas),
    }
    if "{" in path:
        name = path[path.index("{") + 1 : path.index("}")]
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[operation.body]}}}
    if not operation.is_open:
        described["security"] = [{}, {"key": []}]
    return described


def _responses(operation: Operation, schemas: dict[Any, Json]) -> Json:
    content: Json
    if isinstance(operation.answer, str):
        content = {operation.answer: {"schema": {"type": "string"}}}
    else:
        content = {} if operation.answer is None else {"application/json": {"schema": schemas[operation.answer]}}
    if operation.events is not None:
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schemas[operation.events]}
        event = {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": {"description": "Server-sent events, where `stream` is true.", **event}}
    responses: Json = {"200": {"description": "The answer.", "content": content}} if content else {}
    for status in sorted({*operation.errors, *(() if operation.is_open else (401,))}):
        kind = schemas[operation.answer] if operation.is_open and status == 503 else schemas[operation.error]
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": {"application/json": {"schema": kind}}}
    return responses


class Description:
    """The two routes. What they answer is made once."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        document = describe(operations)
        self._document = msgspec.json.encode(document)
        self._page, self._headers = page(document)

    async def show_document(self, request: Request) -> Response:
        """GET /openapi.json."""
        return Response(self._document, media_type="application/json")

    async def show_page(self, request: Request) -> Response:
        """GET /docs."""
        return Response(self._page, headers=self._headers, media_type="text/html")
