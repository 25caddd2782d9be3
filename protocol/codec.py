"""msgspec encoding of the messages, one reused encoder and one typed decoder per link, and packed integers.

Bulk integers travel as raw little-endian bytes. A steady step then costs one `frombuffer` instead of a Python object per
number.
"""

from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import ProtocolError

Message = TypeVar("Message")

Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]

_ENCODER = msgspec.msgpack.Encoder()


def encode(message: object) -> bytes:
    """One message as msgpack bytes."""
    return _ENCODER.encode(message)


class Decoder(Generic[Message]):
    """Decodes the messages of one directed link and refuses everything else."""

    def __init__(self, message_type: object) -> None:
        """`message_type` is a tagged Struct or a union of them."""
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(message_type)

    def decode(self, frame: bytes | memoryview) -> Message:
        """Raises ProtocolError when the frame is not a message of this link."""
        try:
            return self._decoder.decode(frame)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"malformed frame of {len(frame)} bytes: {error}") from error


def pack_int32(values: npt.ArrayLike) -> bytes:
    """Integers as little-endian int32 bytes."""
    return np.asarray(values, dtype="<i4").tobytes()


def pack_uint64(values: npt.ArrayLike) -> bytes:
    """Integers as little-endian uint64 bytes."""
    return np.asarray(values, dtype="<u8").tobytes()


def pack_float32(values: npt.ArrayLike) -> bytes:
    """Numbers as little-endian float32 bytes."""
    return np.asarray(values, dtype="<f4").tobytes()


def pack_bits(bits: BoolArray) -> bytes:
    """bits [B] as ceil(B / 32) little-endian uint32: bit b of word w is bits[32 w + b]."""
    padded = np.zeros(-(-len(bits) // 32) * 32, bool)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").tobytes()


def unpack_bits(data: bytes, size: int) -> BoolArray:
    """What `pack_bits` packed, [size]."""
    return np.unpackbits(np.frombuffer(data, np.uint8), count=size, bitorder="little").astype(bool)


def unpack_int32(data: bytes) -> Int32Array:
    """Read-only int32 view, shape [len(data) // 4]. Raises ProtocolError on a length that is not a multiple of 4."""
    return _unpack(data, "<i4")  # type: ignore[return-value]


def unpack_uint64(data: bytes) -> UInt64Array:
    """Read-only uint64 view, shape [len(data) // 8]. Raises ProtocolError on a length that is not a multiple of 8."""
    return _unpack(data, "<u8")  # type: ignore[return-value]


def unpack_float32(data: bytes) -> Float32Array:
    """Read-only float32 view, shape [len(data) // 4]. Raises ProtocolError on a length that is not a multiple of 4."""
    return _unpack(data, "<f4")  # type: ignore[return-value]


def _unpack(data: bytes, dtype: str) -> npt.NDArray[np.generic]:
    try:
        return np.frombuffer(data, dtype=dtype)
    except ValueError as error:
        raise ProtocolError(f"{len(data)} packed bytes are no whole number of {dtype} values") from error
