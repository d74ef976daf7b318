"""ZeroRPC's events as bytes, read forgivingly and written strictly; methods and their telling."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopline.errors import MissingExtra

try:
    import msgpack
except ImportError as error:
    raise MissingExtra("ZeroRPC needs msgpack: pip install 'loopline[zerorpc]'") from error

BEAT, CREDIT = "_zpc_hb", "_zpc_more"
HEAD = 4096
"""Bytes within which a message that cannot be read as a whole has its header."""
LONGEST_ID = 1000
_NUMBERS = "i1 u1 <i2 <u2 <i4 <u4 <f4 <f8 u1 u1".split()
_ARRAYS = {0x11 + place: np.dtype(kind) for place, kind in enumerate(_NUMBERS)}
_PLAIN = (str, int, float, bool, type(None))
_LENIENT = {"raw": False, "strict_map_key": False, "unicode_errors": "surrogateescape"}
_UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException)
_encode = msgspec.msgpack.Encoder().encode
_mark, _numbers = os.urandom(12).hex().encode(), count()


class Event(NamedTuple):
    """A message, as far as it could be read."""

    header: dict[Any, Any]
    name: Any
    args: Any


def read_event(payload: bytes) -> Event | None:
    """The header, name and arguments of an event; None if it is none. What follows is ignored."""
    try:
        event = msgpack.unpackb(payload, ext_hook=_extension, **_LENIENT)
    except msgpack.ExtraData as error:
        event = error.unpacked
    except _UNREADABLE:
        return None
    if type(event) is not list or len(event) != 3 or type(event[0]) is not dict:
        return None
    return Event(*event)


def read_header(payload: bytes) -> dict[Any, Any]:
    """The header alone, of an event that is too large or damaged behind it; empty if none."""
    unpacker = msgpack.Unpacker(**_LENIENT)
    unpacker.feed(payload[:HEAD])
    try:
        header = unpacker.unpack() if unpacker.read_array_header() == 3 else {}
    except _UNREADABLE:
        return {}
    return header if type(header) is dict else {}


def _extension(code: int, data: bytes) -> Any:
    """A typed array of JavaScript's as an array; other extensions as they are."""
    kind = _ARRAYS.get(code)
    if kind is None or len(data) % kind.itemsize:
        return msgpack.ExtType(code, data)
    return np.frombuffer(data, kind)


def sound(id: Any) -> bool:
    """Whether something can be the id of a message, and can be echoed as it is."""
    if type(id) is str:
        return id.isprintable() and len(id) <= LONGEST_ID
    return type(id) is int or (type(id) is bytes and len(id) <= LONGEST_ID)


def pack(id: Any, name: str, args: Any, more: Mapping[str, Any] = {}) -> bytes:
    """The bytes of an event of the channel `id`; `more` goes into its header.

    Raises:
        TypeError, OverflowError, UnicodeEncodeError, RecursionError: a value cannot be packed.
    """
    header = {"message_id": b"%b%x" % (_mark, next(_numbers)), "v": 3, "response_to": id, **more}
    return _encode((header, name, _plain(args)))


def _plain(value: Any) -> Any:
    """Only what MessagePack has, with texts as keys: Python's clients drop a reply with others."""
    given: dict[str, Any] = {
        "str_keys": True,
        "builtin_types": (bytes, bytearray),
        "enc_hook": _bare,
    }
    try:
        return msgspec.to_builtins(value, **given)
    except TypeError:
        return msgspec.to_builtins(_keyed(value), **given)


def _bare(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"can not serialize {type(value).__name__!r} object")


def _keyed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): _keyed(inner) for key, inner in value.items()}
    return [_keyed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _key(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return str(key).lower() if isinstance(key, bool | np.bool_) else str(key)


class Method:
    """A served function, with what introspection tells of it.

    Args:
        function: plain (runs in a thread), or of the event loop's: a coroutine or async generator.
        doc: told instead of its docstring.
        with_call: it is called on the event loop with the `Call` as its first argument, and may
            return None, to answer by that later.
        more: members of its entry in `_zerorpc_inspect` that clients may know.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        doc: str | None = None,
        with_call: bool = False,
        **more: Any,
    ) -> None:
        self.function = function
        self.with_call = with_call
        streams = inspect.isasyncgenfunction(function)
        self.on_loop = with_call or streams or inspect.iscoroutinefunction(function)
        self.doc = inspect.getdoc(function) if doc is None else doc
        self.more = {"stream": streams or inspect.isgeneratorfunction(function), **more}
        self._parameters = _parameters(function, with_call)
        given = [each for each in self._parameters or () if each.kind < each.VAR_POSITIONAL]
        self._names = [each.name for each in given]
        self._defaults = [_told(each.default) for each in given if each.default is not each.empty]
        some = [each for each in self._parameters or () if each.kind == each.VAR_POSITIONAL]
        self._rest = some[0].name if some else None
        bounded = self._parameters is not None and not some
        self._most = len(given) if bounded else None
        self._least = len(given) - len(self._defaults)

    def misfit(self, args: list[Any]) -> str | None:
        """What is wrong with the number of arguments, None if nothing is."""
        if self._most is not None and len(args) > self._most:
            return f"takes {self._most} arguments at most, and {len(args)} were given"
        if len(args) < self._least:
            return f"takes {self._least} arguments at least, and {len(args)} were given"
        return None

    def spec(self) -> list[Any] | None:
        """The names, the rest's name, None for keywords, and the defaults of the last names."""
        if self._parameters is None:
            return None
        return [self._names, self._rest, None, self._defaults or None]

    def entry(self) -> dict[str, Any]:
        """What `_zerorpc_inspect` tells of it."""
        if self._parameters is None:
            return {"args": None, "doc": self.doc, **self.more}
        args = [{"name": name} for name in (*self._names, *filter(None, [self._rest]))]
        for place, default in enumerate(self._defaults, self._least):
            args[place]["default"] = default
        return {"args": args, "doc": self.doc, **self.more}


def _parameters(function: Callable[..., Any], with_call: bool) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())[with_call:]
    except (TypeError, ValueError):
        return None


def _told(default: Any) -> Any:
    return default if type(default) in _PLAIN else repr(default)


def published(thing: Any) -> dict[str, Method]:
    """The public methods of an object, as they are now."""
    named = {
        name: getattr(thing, name)
        for name in dir(thing)
        if not name.startswith("_")
        and not isinstance(inspect.getattr_static(thing, name), property)
    }
    callables = {n: each for n, each in named.items() if callable(each) and type(each) is not type}
    return {name: Method(each) for name, each in callables.items()}


def introspection(service: str, methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that every ZeroRPC service has."""

    def find(method: Any) -> Method:
        found = methods.get(method)
        if found is None:
            raise NameError(str(method))
        return found

    own: dict[str, Callable[..., Any]] = {
        "ping": lambda: ["pong", service],
        "name": lambda: service,
        "list": lambda: sorted(methods),
        "help": lambda method: find(method).doc,
        "args": lambda method: find(method).spec(),
        "inspect": lambda: {
            "name": service,
            "methods": {name: methods[name].entry() for name in sorted(methods)},
        },
    }
    return {f"_zerorpc_{name}": Method(each) for name, each in own.items()}
