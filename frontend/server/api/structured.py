"""The fields that say what an output must be, under OpenAI's names and vLLM's: at most one of them in a request."""

from typing import TypeVar

import msgspec

from frontend import structured
from frontend.errors import InvalidRequest
from frontend.server.api.errors import from_decoding
from protocol.params import MAX_GRAMMAR_CHARACTERS, Grammar

FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")

_SPELT_OUT = 6 * MAX_GRAMMAR_CHARACTERS  # bytes of JSON: a character may be written in six

Value = TypeVar("Value")
_Fields = dict[str, msgspec.Raw]


def grammar_of(given: dict[str, msgspec.Raw]) -> tuple[Grammar | None, str]:
    """What the fields of a request ask for, and the name of the field that does. `given`: those of `FIELDS`, as JSON.

    Raises InvalidRequest or ApiError naming the field that is wrong, or the second of two.
    """
    found: Grammar | None = None
    by = ""
    for field, raw in given.items():
        data = bytes(raw)
        if data in (b"", b"null"):
            continue
        if len(data) > _SPELT_OUT:
            raise InvalidRequest(f"{field}: at most {MAX_GRAMMAR_CHARACTERS} characters are possible", field)
        if (grammar := _READERS[field](data, field)) is None:
            continue
        if found is not None:
            raise InvalidRequest(f"{by} and {field} cannot be used together", field)
        found, by = grammar, field
    return found, by


def response_format(data: bytes, field: str) -> Grammar | None:
    """OpenAI's field: `{"type": …}`. None for a text."""
    fields = _decoded(data, _Fields, field)
    if not fields:
        return None
    kind = _decoded(bytes(fields.get("type", msgspec.Raw(b"null"))), str, f"{field}.type")
    match kind:
        case "text":
            return None
        case "json_object":
            if _is_given(fields, "schema"):  # llama.cpp's and others' way to say json_schema
                return _schema(bytes(fields["schema"]), f"{field}.schema")
            return Grammar("json_object")
        case "json_schema":
            return _json_schema(fields, field)
        case "structural_tag":
            return structured.from_structural_tag(data, field)
    raise InvalidRequest(
        f"{field}.type must be 'text', 'json_object', 'json_schema' or 'structural_tag', not {kind[:50]!r}", f"{field}.type"
    )


def _json_schema(fields: _Fields, field: str) -> Grammar:
    """`{"type": "json_schema", "json_schema": {"name": …, "schema": …}}`; `strict` or not, it is followed."""
    if _is_given(fields, "json_schema"):
        inner, place = _decoded(bytes(fields["json_schema"]), _Fields, f"{field}.json_schema"), f"{field}.json_schema.schema"
    else:  # the Responses API has no level between
        inner, place = fields, f"{field}.schema"
    if not _is_given(inner, "schema"):
        if inner is fields:
            raise InvalidRequest(f"{field}.json_schema is missing", f"{field}.json_schema")
        return Grammar("json_object")
    return _schema(bytes(inner["schema"]), place)


def _structured_outputs(data: bytes, field: str) -> Grammar | None:
    """vLLM's field: an object with one of several keys."""
    fields = _decoded(data, _Fields, field)
    found = [name for name in _OUTPUTS if _is_given(fields, name) and bytes(fields[name]) != b"false"]
    if len(found) > 1:
        raise InvalidRequest(f"{field}: {found[0]} and {found[1]} cannot be used together", field)
    return _OUTPUTS[found[0]](bytes(fields[found[0]]), f"{field}.{found[0]}") if found else None


def _schema(data: bytes, field: str) -> Grammar:
    """An object, or a text that holds one."""
    return structured.from_schema(_decoded(data, str, field) if data.startswith(b'"') else data, field)


def _regex(data: bytes, field: str) -> Grammar:
    return structured.from_regex(_decoded(data, str, field), field)


def _choices(data: bytes, field: str) -> Grammar:
    return structured.from_choices(_decoded(data, list[str], field), field)


def _grammar(data: bytes, field: str) -> Grammar:
    return structured.from_grammar(_decoded(data, str, field), field)


def _json_object(data: bytes, field: str) -> Grammar:
    _decoded(data, bool, field)
    return Grammar("json_object")


def _structural_tag(data: bytes, field: str) -> Grammar:
    return structured.from_structural_tag(_decoded(data, str, field) if data.startswith(b'"') else data, field)


_OUTPUTS = {
    "json": _schema,
    "regex": _regex,
    "choice": _choices,
    "grammar": _grammar,
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}
_READERS = {
    "response_format": response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choices,
    "guided_grammar": _grammar,
}


def _is_given(fields: _Fields, name: str) -> bool:
    return name in fields and bytes(fields[name]) != b"null"


def _decoded(data: bytes, kind: type[Value], field: str) -> Value:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        reason = str(error).partition(" - at")[0].replace("`", "")
        raise InvalidRequest(f"{field}: {reason[:1].lower()}{reason[1:]}", field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_decoding(error) from error
