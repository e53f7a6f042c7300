"""How a payload becomes the text of ``trace_payloads.payload_compressed``, and how it is read back. Pure.

The format is the predecessor's: compact JSON with non-ASCII characters as they are, in UTF-8, zlib at its default level, base64.
Both directions are total. A value JSON has no form for is stored as ``{"unserializable": "<type name>"}`` and named in
``problem``; text that cannot be read back comes out as no payload and a reason. Nothing here decides what may be stored:
masking and cutting happen before, in the recorder's thread.
"""

import json
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

UNSERIALIZABLE = "unserializable"
"""The key that marks a value which could not be stored as it was."""

# Deeper nesting is described instead of followed when the careful path has to walk a value; readers recurse as well.
_MAX_DEPTH = 200
# Python refuses to spell integers of more than 4,300 digits; this many bits stays below that.
_MAX_INT_BITS = 14_000
# Kinds of problems that are named one by one in error_details; the rest are counted.
_MAX_NAMED_PROBLEMS = 5

_fast_encode = msgspec.json.Encoder().encode
_fast_decode = msgspec.json.Decoder().decode
_careful_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

# zlib's default compressor clears 256 kB of memory first: 33 µs, most of the cost of a small payload. What fits into a window of
# 8 kB is packed in 6 µs by a small one; its raw stream is as valid under the header of the large one.
_SMALL_BYTES = 8_192
_SMALL_WINDOW_BITS = 13
_SMALL_MEM_LEVEL = 6
# What zlib writes before a stream of the default level and window (RFC 1950).
_ZLIB_HEADER = b"\x78\x9c"

# msgspec writes 1e22 where json writes 1e+22. Folding all digits and the minus sign to "0" makes a possible exponent findable
# by one substring search (20 us for 15 KB); the expression then tells numbers from words. A false alarm costs time only.
_FOLD_DIGITS = bytes.maketrans(b"123456789-", b"0000000000")
_EXPONENT = re.compile(rb"[0-9]e-?[0-9]+(?:[,\]}]|$)")
# And 0.00001 where json writes 1e-05, from there downwards.
_SMALL = b"0.0000"
_SURROGATES = re.compile("[\ud800-\udfff]")


class EncodedPayload(Struct, frozen=True, kw_only=True):
    """A payload as it is stored. ``size_original`` is JSON characters, ``size_compressed`` zlib bytes before base64."""

    text: str
    size_original: int
    size_compressed: int
    problem: str | None = None


class DecodedPayload(Struct, frozen=True, kw_only=True):
    """A payload as it was, or None and the reason in ``problem`` when there was text that could not be read."""

    payload: Any
    problem: str | None = None


def encode_payload(payload: object) -> EncodedPayload:
    """Pack a payload. Never raises; ``problem`` names what could not be stored as it was."""
    text = _encode_fast(payload)
    problem = None
    if text is None:
        walk = _Walk()
        text = _careful_encode(walk.plain(payload)).encode()
        problem = walk.problem()
    packed = _compress(text)
    return EncodedPayload(
        text=b64encode(packed).decode("ascii"),
        size_original=len(text) if text.isascii() else len(text.decode()),
        size_compressed=len(packed),
        problem=problem,
    )


def _compress(text: bytes) -> bytes:
    """A zlib stream at the default level: the bytes ``zlib.compress`` gives, or as many and as good."""
    if len(text) > _SMALL_BYTES:
        return zlib.compress(text)
    compressor = zlib.compressobj(wbits=-_SMALL_WINDOW_BITS, memLevel=_SMALL_MEM_LEVEL)
    raw = compressor.compress(text) + compressor.flush()
    return b"".join((_ZLIB_HEADER, raw, zlib.adler32(text).to_bytes(4, "big")))


def decode_payload(text: str | None) -> DecodedPayload:
    """Unpack stored text. Never raises: NULL is no payload, anything unreadable is no payload and a reason."""
    if text is None:
        return DecodedPayload(payload=None)
    try:
        packed = b64decode(text)
    except ValueError:
        return DecodedPayload(payload=None, problem="payload unreadable: not base64")
    try:
        plain = zlib.decompress(packed)
    except zlib.error:
        return DecodedPayload(payload=None, problem="payload unreadable: compressed data damaged or cut short")
    try:
        return DecodedPayload(payload=_decode_json(plain))
    except (ValueError, RecursionError):
        return DecodedPayload(payload=None, problem="payload unreadable: not JSON")


def _decode_json(plain: bytes) -> Any:
    try:
        return _fast_decode(plain)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # The predecessor also wrote NaN and lone surrogates as Python's own encoder spells them.
        return json.loads(plain.decode("utf-8", "surrogatepass"), parse_constant=_describe_constant)


def _describe_constant(_: str) -> dict[str, str]:
    return {UNSERIALIZABLE: "float"}


def _encode_fast(payload: object) -> bytes | None:
    """The JSON when the quick encoder is known to have written what json would, else None.

    It writes bytes, dates, NaN, sets and integer keys without a word, so its output is read back and compared: what does not come
    back equal takes the careful path. Both steps together cost a third of json's encoder alone (100 us against 300 for 15 KB).
    """
    try:
        text = _fast_encode(payload)
        if _fast_decode(text) != payload:
            return None
    except (TypeError, ValueError, OverflowError, RuntimeError, msgspec.MsgspecError):
        return None
    if _SMALL in text:
        return None
    if b"0e0" in text.translate(_FOLD_DIGITS) and _EXPONENT.search(text):
        return None
    return text


class _Walk:
    """Copies a value into what JSON can hold, and remembers what it had to describe instead."""

    def __init__(self) -> None:
        self._problems: dict[str, int] = {}
        self._parents: set[int] = set()

    def problem(self) -> str | None:
        """What was described, for ``error_details``; None when everything could be stored as it was."""
        if not self._problems:
            return None
        named = [f"{what} ({times}x)" for what, times in list(self._problems.items())[:_MAX_NAMED_PROBLEMS]]
        hidden = len(self._problems) - len(named)
        return "not serializable: " + ", ".join(named) + (f", and {hidden} other kinds" if hidden else "")

    def plain(self, value: object) -> Any:
        """The value itself where JSON has a form for it, a description where it has none."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            fits = int(value).bit_length() <= _MAX_INT_BITS
            return value if fits else self._describe(value, "int too long")
        if isinstance(value, float):
            # NaN and the infinities are the only floats that change when taken from themselves.
            return value if value - value == 0 else self._describe(value, f"float {value}")
        if isinstance(value, Mapping | list | tuple):
            return self._container(value)
        return self._describe(value, type(value).__name__)

    def _text(self, value: str) -> Any:
        if _SURROGATES.search(value) is None:
            return value
        # Half an emoji in a long answer must not cost the answer.
        return self._describe(value, "str with lone surrogates") | {"text": _SURROGATES.sub("\ufffd", value)}

    def _container(self, value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> Any:
        if id(value) in self._parents:
            return self._describe(value, f"{type(value).__name__} that contains itself")
        if len(self._parents) >= _MAX_DEPTH:
            return self._describe(value, f"{type(value).__name__} nested deeper than {_MAX_DEPTH}")
        self._parents.add(id(value))
        copy: Any
        if isinstance(value, Mapping):
            copy = {}
            for key, item in list(value.items()):
                copy[self._key(key, copy)] = self.plain(item)
        else:
            copy = [self.plain(item) for item in value]
        self._parents.discard(id(value))
        return copy

    def _key(self, key: object, taken: Mapping[str, Any]) -> str:
        if isinstance(key, str) and _SURROGATES.search(key) is None:
            return key
        name = type(key).__name__
        self._count(f"{name} key")
        # The entry is kept under a name that says what its key was; a second one of that kind gets a number.
        marked = spelled = f"{UNSERIALIZABLE} {name} key"
        number = 1
        while spelled in taken:
            number += 1
            spelled = f"{marked} {number}"
        return spelled

    def _describe(self, value: object, what: str) -> dict[str, str]:
        self._count(what)
        return {UNSERIALIZABLE: type(value).__name__}

    def _count(self, what: str) -> None:
        self._problems[what] = self._problems.get(what, 0) + 1
