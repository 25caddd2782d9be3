"""The description as a page for people: one document of plain HTML, which needs no script and loads nothing."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from itertools import chain
from typing import Any

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --faint: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
code, .path { font-family: ui-monospace, monospace; font-size: .92em; }
h1 small { font-weight: normal; color: var(--faint); font-size: .5em; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
section { margin: 1rem 0; border: 1px solid var(--line); border-radius: .4rem; padding: .4rem 1rem; }
section > h3 { margin: .3rem 0; font-weight: 600; }
.method { display: inline-block; min-width: 3.2rem; font: 600 .8em ui-monospace, monospace; color: var(--faint); }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-size: .92em; }
th { text-align: left; font-weight: 600; background: var(--soft); }
th, td { padding: .25rem .5rem; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
nav ul { columns: 2; list-style: none; padding: 0; }
summary { cursor: pointer; }
.faint { color: var(--faint); }
@media (max-width: 40rem) { nav ul { columns: 1; } td:first-child { white-space: normal; overflow-wrap: anywhere; } }
"""


def page(document: Json) -> tuple[bytes, dict[str, str]]:
    """The page of an OpenAPI document, and the headers that it is sent with."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return "".join(_whole(document)).encode(), headers


def _whole(document: Json) -> Iterator[str]:
    info, schemas = document["info"], document["components"]["schemas"]
    groups: dict[str, list[tuple[str, str, Json]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append((method, path, operation))
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{escape(info['title'])}: interface</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    yield f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>\n<p>{escape(info['description'])}</p>\n"
    yield '<p>For programs: <a href="openapi.json"><code>openapi.json</code></a>, OpenAPI 3.1.</p>\n<nav><ul>\n'
    for method, path, operation in chain(*groups.values()):
        yield f'<li><a href="#{_anchor(operation)}">{_title(method, path)}</a></li>\n'
    yield "</ul></nav>\n"
    for group, entries in groups.items():
        yield f"<h2>{escape(group)}</h2>\n"
        for method, path, operation in entries:
            yield from _operation(method, path, operation, schemas)
    yield "<h2>Types</h2>\n"
    bodies = {_name(body) for _, _, operation in chain(*groups.values()) if (body := _body(operation)) is not None}
    for name, schema in sorted(schemas.items()):
        if name not in bodies:
            yield f'<section id="type-{escape(name)}"><h3><code>{escape(name)}</code></h3>\n'
            yield f"<p>{escape(schema.get('description', ''))}</p>\n"
            yield from _fields(schema)
            yield "</section>\n"
    yield "</body>\n</html>\n"


def _operation(method: str, path: str, operation: Json, schemas: Json) -> Iterator[str]:
    yield f'<section id="{_anchor(operation)}"><h3>{_title(method, path)}</h3>\n<p>{escape(operation["summary"])}'
    yield "</p>\n" if "security" in operation else ' <span class="faint">Needs no key.</span></p>\n'
    for parameter in operation.get("parameters", ()):
        yield f"<p>In the path: <code>{escape(parameter['name'])}</code>, {_kind(parameter['schema'])}.</p>\n"
    if (body := _body(operation)) is not None:
        schema = schemas[_name(body)]
        yield f"<details open><summary>Body, JSON</summary>\n<p>{escape(schema.get('description', ''))}</p>\n"
        yield from _fields(schema)
        yield "</details>\n"
    yield "<table><tr><th>Status</th><th></th><th>Body</th></tr>\n"
    for status, answer in operation["responses"].items():
        kinds = [
            f"{_kind(content['schema'])}"
            if media == "application/json"
            else f"<code>{escape(media)}</code>{_events(content['schema'])}"
            for media, content in answer["content"].items()
        ]
        yield f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td><td>{'<br>'.join(kinds)}</td></tr>\n"
    yield "</table></section>\n"


def _fields(schema: Json) -> Iterator[str]:
    required = schema.get("required", ())
    yield "<table><tr><th>Field</th><th>Type</th><th></th></tr>\n"
    for name, field in schema.get("properties", {}).items():
        text = escape(field.get("description", ""))
        if name in required:
            text = f"<b>Required.</b> {text}"
        elif field.get("default") is not None:
            text += f" <span class='faint'>Default: <code>{escape(str(field['default']))}</code></span>"
        yield f"<tr><td><code>{escape(name)}</code></td><td>{_kind(field)}</td><td>{text}</td></tr>\n"
    yield "</table>\n"


def _kind(schema: Json) -> str:
    """A type in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(_name(schema))
        return f'<a href="#type-{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_nested(schema.get('items', {}))}{_range(schema, 'Items', 'items')}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_nested(schema['additionalProperties'])}"
    if schema.get("type") == "string":
        return f"string{_range(schema, 'Length', 'characters')}"
    if schema.get("type") in ("integer", "number"):
        low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
        return escape(f"{schema['type']}, {low} to {high}" if low is not None and high is not None else schema["type"])
    return escape(schema.get("type", "any"))


def _nested(schema: Json) -> str:
    kind = _kind(schema)
    return f"({kind})" if " or " in kind else kind


def _range(schema: Json, suffix: str, unit: str) -> str:
    most = schema.get(f"max{suffix}")
    return "" if most is None else f", at most {most} {unit}"


def _events(schema: Json) -> str:
    data = schema.get("properties", {}).get("data", {})
    return f": events of {_kind(data['contentSchema'])}" if "contentSchema" in data else ""


def _title(method: str, path: str) -> str:
    return f'<span class="method">{escape(method.upper())}</span><span class="path">{escape(path)}</span>'


def _anchor(operation: Json) -> str:
    return escape(operation["operationId"])


def _body(operation: Json) -> Json | None:
    body: Json | None = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return body


def _name(reference: Json) -> str:
    name: str = reference["$ref"].rpartition("/")[2]
    return name
