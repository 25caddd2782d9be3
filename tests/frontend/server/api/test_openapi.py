"""The description of the interface, and what it says against what is done."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from frontend.server.api import schemas, shapes
from frontend.server.api.describable import refused_fields
from frontend.server.api.fields import FIELDS
from frontend.server.api.routes import operations
from protocol.params import ParameterError, SamplingParams, check
from tests.frontend.server.api.running import RunningEngine

_VOID = {"meta", "br", "link"}


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = http.get("/openapi.json").json()
    return answer


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    names = [node["$ref"].removeprefix("#/components/schemas/") for node in _nodes(document) if "$ref" in node]
    assert names
    assert set(names) <= set(document["components"]["schemas"])
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def test_every_field_that_a_client_may_use_is_described(document: dict[str, Any], running: RunningEngine) -> None:
    for operation in operations(running.engine):
        if operation.body is None:
            continue
        properties = document["components"]["schemas"][operation.body.__name__]["properties"]
        used = set(operation.body.__struct_encode_fields__) - set(refused_fields(operation.body))
        assert set(properties) == used
        assert [name for name, field in properties.items() if not field.get("description")] == [], operation.path


@pytest.mark.parametrize("name", sorted({*FIELDS} & {*SamplingParams.__struct_fields__}))
def test_limits_are_where_values_are_refused(name: str) -> None:
    def refused(value: object) -> bool:
        given: dict[str, Any] = {name: value, "max_tokens": None} if name == "min_tokens" else {name: value}
        try:
            check(SamplingParams(**given), 1000)
        except ParameterError as error:
            return error.param == name
        return False

    limits = FIELDS[name]
    for key, step in (("minimum", -1), ("maximum", 1)):
        if key in limits:
            assert not refused(limits[key])
            assert refused(limits[key] + step)
    if "exclusiveMinimum" in limits:
        assert refused(limits["exclusiveMinimum"])
    if "maxItems" in limits:
        item = 1 if name.endswith("ids") else "x"
        assert not refused([item] * limits["maxItems"])
        assert refused([item] * (limits["maxItems"] + 1))
    if "maxLength" in limits:
        assert not refused(["x" * limits["maxLength"]])
        assert refused(["x" * (limits["maxLength"] + 1)])


def test_answers_have_the_described_shapes(http: httpx.Client) -> None:
    ask = {"max_tokens": 3, "seed": 1, "return_token_ids": True, "stream_options": {"include_usage": True}}
    prompt, messages = {"prompt": "a", "logprobs": 2}, {"messages": [{"role": "user", "content": "a"}], "logprobs": True}
    cases: list[tuple[type, httpx.Response]] = [
        (shapes.Completion, http.post("/v1/completions", json=ask | prompt)),
        (shapes.ChatCompletion, http.post("/v1/chat/completions", json=ask | messages | {"top_logprobs": 2})),
        (shapes.ModelList, http.get("/v1/models")),
        (shapes.ModelCard, http.get("/v1/models/demo")),
        (shapes.Tokens, http.post("/tokenize", json={"prompt": "a", "return_token_strs": True})),
        (shapes.Text, http.post("/detokenize", json={"tokens": [1]})),
        (shapes.TokenizerInfo, http.get("/tokenizer_info")),
        (shapes.Health, http.get("/health")),
        (shapes.Version, http.get("/version")),
        (shapes.ErrorAnswer, http.get("/nothing")),
    ]
    for kind, answer in cases:
        _has_shape(answer.content, kind)
    for path, fields, kind in (("completions", prompt, shapes.Completion), ("chat/completions", messages, shapes.ChatChunk)):
        text = http.post(f"/v1/{path}", json=ask | fields | {"stream": True}).text
        events = re.findall(r"^data: (\{.*)$", text, re.MULTILINE)
        assert len(events) >= 2  # tokens may have merged; the last event tells the usage
        for event in events:
            _has_shape(event.encode(), kind)


def _has_shape(data: bytes, kind: type) -> None:
    """The JSON is of this type, and has no field that the type has not."""
    decoded = msgspec.to_builtins(msgspec.json.decode(data, type=kind))

    def check(given: Any, shape: Any, where: str) -> None:
        if isinstance(given, dict) and isinstance(shape, dict):
            assert set(given) <= set(shape), where
            for key, value in given.items():
                check(value, shape[key], f"{where}.{key}")
        elif isinstance(given, list):
            for index, value in enumerate(given):
                check(value, shape[index], f"{where}[{index}]")

    check(msgspec.json.decode(data), decoded, kind.__name__)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert name in {"href", "id", "class", "lang", "charset", "name", "content", "open"}, (tag, name)
            if name == "href":
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_all_and_loads_nothing(http: httpx.Client, document: dict[str, Any]) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = answer.text
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert answer.headers["content-security-policy"].startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert not page.tags & {"script", "img", "link", "iframe", "form", "object"}
    assert len(set(page.ids)) == len(page.ids)
    assert {link for link in page.links if link != "openapi.json"} <= {f"#{name}" for name in page.ids}
    for path in document["paths"]:
        assert path in text
    for schema in document["components"]["schemas"].values():
        for name in schema.get("properties", {}):
            assert f"<code>{name}</code>" in text


def test_the_handbook_names_every_field(running: RunningEngine) -> None:
    text = (Path(__file__).parents[4] / "docs/api.md").read_text()
    missing = {
        f"{operation.path}: {name}"
        for operation in operations(running.engine)
        if operation.body is not None
        for name in operation.body.__struct_encode_fields__
        if not re.search(rf"`{name}`", text)
    }
    assert missing == set()
    assert [
        operation.path
        for operation in operations(running.engine)
        if operation.path.replace(":path}", "}").replace("{name}", "NAME") not in text
    ] == []


def test_what_is_refused_is_said(document: dict[str, Any]) -> None:
    for kind in (schemas.CompletionRequest, schemas.ChatRequest):
        for name in kind.unsupported:
            assert name in document["components"]["schemas"][kind.__name__]["description"]
