"""From the JSON of a body to its type, and the names of fields that the type does not have.

Such fields are ignored. To tell which they are costs nothing where there are none: a body is decoded by a type that forbids them,
and only one that has some is decoded again.
"""

import re
import types
from typing import Generic, TypeVar

import msgspec

Body = TypeVar("Body", bound=msgspec.Struct)

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_SMALL = 64 << 10  # bytes; in a larger body only the first unknown field is named, since a further pass is not worth it


class BodyDecoder(Generic[Body]):
    """Decodes bodies of one type."""

    def __init__(self, kind: type[Body]) -> None:
        self._lenient = msgspec.json.Decoder(kind)
        strict = types.new_class(kind.__name__, (kind,), {"frozen": True, "forbid_unknown_fields": True})
        self._strict: msgspec.json.Decoder[Body] = msgspec.json.Decoder(strict)
        self._members = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._known = frozenset(kind.__struct_encode_fields__)

    def decode(self, data: bytes) -> tuple[Body, list[str]]:
        """The body, and the names of its unknown fields. Raises what msgspec raises on what is not of the type."""
        try:
            return self._strict.decode(data), []
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN.fullmatch(str(error))
            if unknown is None:
                raise
            first = unknown[1]
        body = self._lenient.decode(data)
        if len(data) > _SMALL:
            return body, [first]
        return body, [name for name in self._members.decode(data) if name not in self._known]
