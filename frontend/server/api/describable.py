"""The types of bodies as a description can show them: without the fields that are only there to be refused."""

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from frontend import messages
from frontend.server.api.schemas import ChatMessage


class Describable:
    """Makes the types, each once."""

    def __init__(self) -> None:
        self._made: dict[type, type] = {}

    def of(self, kind: Any) -> Any:
        """The same type, where every struct in it has only fields that a client may use."""
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind not in self._made:
                self._made[kind] = self._struct(kind)
            return self._made[kind]
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            return Union[tuple(self.of(argument) for argument in arguments)]  # noqa: UP007 - of a tuple
        if origin in (list, dict, tuple):
            return origin[tuple(self.of(argument) for argument in arguments)]
        if origin is Annotated:
            return Annotated[(self.of(arguments[0]), *arguments[1:])]
        return kind

    def _struct(self, kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
        hints = get_type_hints(kind, include_extras=True)
        refused = refused_fields(kind)
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for field in msgspec.structs.fields(kind):
            if field.name in refused:
                continue
            hint = Any if hints[field.name] is msgspec.Raw else self.of(hints[field.name])
            if field.required:
                fields.append((field.name, hint))
            elif isinstance(field.default, msgspec.Raw) or field.default in (msgspec.NODEFAULT, msgspec.UNSET):
                fields.append((field.name, hint, msgspec.field(name=field.encode_name, default=None)))
            else:
                fields.append((field.name, hint, msgspec.field(name=field.encode_name, default=field.default)))
        config = kind.__struct_config__
        made = msgspec.defstruct(
            kind.__name__, fields, module=kind.__module__, kw_only=True, tag=config.tag, tag_field=config.tag_field
        )
        made.__doc__ = kind.__doc__
        return made


def refused_fields(kind: type[msgspec.Struct]) -> Sequence[str]:
    """Fields that are known only to be refused, where they ask for something."""
    refused: Sequence[str] = messages.UNSUPPORTED if kind is ChatMessage else getattr(kind, "unsupported", ())
    return refused
