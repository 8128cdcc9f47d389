"""Values to JSON and back, such that they arrive as what they were.

What JSON has no word for is written as Kombu writes it, `{"__type__": tag, "__value__": …}`:

    datetime, date, time    ISO 8601                     timedelta    [days, seconds, microseconds]
    decimal                 "1.10"                       float        "nan", "inf", "-inf"
    uuid                    {"hex": …}                   enum         {"module", "qualname", "name"}
    bytes, base64           text, or base64 of it        dataclass    {"module", "qualname", "fields"}
    dict                    [[key, value], …]            str          base64 of UTF-8 with lone surrogates

The left column is Kombu's own (a Celery worker reads it), the right column and the last line are ours; `dict` is for a dict that
looks like a tag itself. Everything else is EncodeError at the call, with the path to the value. Tuples become lists and keys become strings, as in any JSON.

Nothing that is read can import a module or run a constructor, except those of exceptions and of the types in the table: classes are only looked up
among the modules that are loaded, and must be an Enum, a dataclass or an exception.
"""

from __future__ import annotations

import datetime as _datetime
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, Flag
from functools import lru_cache
from math import isfinite
from typing import Any, cast

import msgspec
from msgspec import Raw

from . import errors
from .errors import ContentDisallowed, DecodeError, EncodeError
from .message import Message

JSON = "application/json"

CONTENT_TYPES = {
    "json": JSON,
    "pickle": "application/x-python-serialize",
    "yaml": "application/x-yaml",
    "msgpack": "application/x-msgpack",
}
"""Names of serializers, and what messages call them."""

_NAMES = {content_type: name for name, content_type in CONTENT_TYPES.items()} | {
    "application/x-json": "json",
    "application/yaml": "yaml",
    "text/yaml": "yaml",
    "application/msgpack": "msgpack",
}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_typed_body = msgspec.json.Decoder(tuple[tuple[Any, ...], dict[str, Any], dict[str, Any] | None]).decode

_TAG_MARK = b'"__type__"'
# It is looked for with `find`: `bytes in bytes` tries first whether it is given a number, and takes six times as long.
_NO_EMBED = b',{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
_EMBED_NAMES = ("callbacks", "errbacks", "chain", "chord")


# -- values ------------------------------------------------------------------------------------------------------------


def encode_value(value: Any, path: str = "") -> Raw:
    """`value` as JSON. Raises EncodeError, which calls the value `path`: `result`, `args[0]`."""
    try:
        encoded = _encode_plain(value) if _is_plain((value,)) else None
    except RecursionError:
        encoded = None
    if encoded is not None:
        return Raw(encoded)
    return Raw(_encode(_tagged(value, path)))


def decode_value(raw: Raw | bytes) -> Any:
    """What `encode_value` was given. Raises DecodeError when it is malformed, has an unknown tag, or names a class that is not loaded."""
    data = bytes(raw)
    value = _parse(data)
    return _revived(value) if data.find(_TAG_MARK) >= 0 else value


# -- bodies ------------------------------------------------------------------------------------------------------------


def encode_body(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    embed: Mapping[str, Any] | None = None,
    serializer: str = "json",
    accept: Iterable[str] | None = None,
) -> tuple[str, Raw]:
    """Content type and body of a message, see `Message.body`. EncodeError names the argument that cannot travel.

    With `accept` (`accept_content`), a serializer that no worker of this app would read is refused too.
    """
    if serializer != "json":
        return _encode_other(args, kwargs, embed, serializer, accept)
    try:
        encoded = _encode_plain((args, kwargs)) if embed is None and _is_plain(args) and _is_plain_dict(kwargs) else None
    except RecursionError:
        encoded = None
    if encoded is not None:
        return JSON, Raw(encoded[:-1] + _NO_EMBED)
    return JSON, Raw(_encode(_tagged_body(args, kwargs, embed)))


def decode_body(message: Message, accept: Iterable[str] = frozenset({"json"})) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """`args, kwargs, embed` of a message. `accept` holds names of serializers or content types.

    Raises: ContentDisallowed: the format is not among `accept`; nothing was decoded.
            DecodeError: it is malformed, or a value in it has no meaning here.
    """
    content_type = message.content_type
    if content_type == JSON and ("json" in accept or JSON in accept):
        data = bytes(message.body)
        try:
            args, kwargs, embed = _decode_typed_body(data)
        except (ValueError, RecursionError):
            return _checked_body(_revived(_parse(data)))
        if data.find(_TAG_MARK) >= 0:
            return _checked_body(_revived([args, kwargs, embed]))
        return args, kwargs, embed or {}
    return _checked_body(_decode_other(message, accept))


def content_types(names: Iterable[str]) -> frozenset[str]:
    """The content types that an `accept_content` allows; its names may be content types themselves."""
    return frozenset(CONTENT_TYPES.get(name, name) for name in names)


def serializer_named(name: str) -> str | None:
    """The serializer with this name or content type; None when there is none."""
    return name if name in CONTENT_TYPES else _NAMES.get(name)


def _checked_body(body: Any) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    match body:
        case [list() | tuple() as args, dict() as kwargs, dict() | None as embed]:
            if all(type(name) is str for name in kwargs):
                return tuple(args), kwargs, embed or {}
            raise DecodeError(f"The body's kwargs have names that are not strings: {_brief(list(kwargs))}.")
        case list() | tuple():
            kinds = ", ".join(type(part).__name__ for part in body[:5])
            raise DecodeError(f"The body is not [args, kwargs, embed] but an array of {len(body)}: {kinds}.")
        case _:
            raise DecodeError(f"The body is not the array [args, kwargs, embed] but {_brief(body)}.")


def _embedded(embed: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**dict.fromkeys(_EMBED_NAMES), **(embed or {})}


def _tagged_body(args: Sequence[Any], kwargs: Mapping[str, Any], embed: Mapping[str, Any] | None) -> list[Any]:
    tagged_kwargs: dict[str, Any] = {}
    for name, value in kwargs.items():
        if not isinstance(name, str):
            raise EncodeError(
                f"kwargs has the name {name!r}, which is {_a(type(name).__name__)}; names of arguments are strings.", "kwargs"
            )
        tagged_kwargs[name] = _tagged(value, f"kwargs[{name!r}]")
    # Arguments of this shape would be taken for a tag.
    tagged: Any = _escaped(tagged_kwargs)
    return [
        [_tagged(value, f"args[{index}]") for index, value in enumerate(args)],
        tagged,
        _tagged(_embedded(embed), ""),
    ]


# -- is it plain? ------------------------------------------------------------------------------------------------------
#
# msgspec would write a datetime as a plain string and NaN as null, without a word. So a walk in Python, over nothing but types, comes first.

_PLAIN = frozenset({str, int, bool, type(None)})


def _is_plain(values: Iterable[Any]) -> bool:
    """True when JSON has a word for all of `values`, and for everything in them."""
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is dict:
            if not _is_plain_dict(value):
                return False
        elif kind is list or kind is tuple:
            if not _is_plain(value):
                return False
        elif kind is not float or not isfinite(value):
            return False
    return True


def _is_plain_dict(value: Mapping[Any, Any]) -> bool:
    for key in value:
        kind = type(key)
        if kind is not str and kind is not int:
            return False
    return _is_plain(value.values())


def _encode_plain(value: Any) -> bytes | None:
    """JSON of a plain value; None when it needs tags all the same: a dict that looks like a tag, lone surrogates."""
    try:
        encoded = _encode(value)
    except (ValueError, RecursionError):
        return None
    return encoded if encoded.find(_TAG_MARK) < 0 else None


# -- with tags ---------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """A value cannot travel. The path to it is collected while the walk unwinds."""

    def __init__(self, template: str, value: Any, cause: BaseException | None = None) -> None:
        super().__init__(template)
        self.template = template
        self.value = value
        self.cause = cause
        self.steps: list[str] = []


def _tagged(value: Any, path: str) -> Any:
    try:
        return _tag(value)
    except _Refused as refused:
        where = path + "".join(reversed(refused.steps))
        raise EncodeError(refused.template.format(where=where or "The value"), where) from refused.cause
    except RecursionError:
        where = path or "The value"
        raise EncodeError(f"{where} is nested too deeply, or contains itself. Pass flat data.", path) from None


def _tag(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _tag_str(value)
    if kind in _PLAIN:
        return _tag_int(value) if kind is int else value
    if kind is float:
        return value if isfinite(value) else {"__type__": "float", "__value__": repr(value)}
    if kind is dict:
        return _tag_dict(value)
    if kind is list or kind is tuple:
        return _tag_items(value)
    return _tag_object(value)


def _tag_str(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"__type__": "str", "__value__": b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def _tag_int(value: int) -> int:
    if value.bit_length() > 13_000:  # msgspec, as Python, reads no more than 4300 digits
        raise _Refused("{where} is an integer of more than 3900 digits, which JSON readers refuse. Pass it as text, hex(n).", value)
    return value


def _tag_items(values: Sequence[Any]) -> list[Any]:
    tagged = []
    try:
        for value in values:
            tagged.append(_tag(value))
    except _Refused as refused:
        refused.steps.append(f"[{len(tagged)}]")
        raise
    return tagged


def _tag_dict(values: Mapping[Any, Any]) -> dict[str, Any]:
    tagged: dict[str, Any] = {}
    for key, value in values.items():
        name = _key(key)
        try:
            tagged[name] = _tag(value)
        except _Refused as refused:
            refused.steps.append(f"[{key!r}]")
            raise
    return _escaped(tagged)


def _escaped(tagged: dict[str, Any]) -> dict[str, Any]:
    """A dict of the user's, so that it is not taken for a tag and its keys can be written."""
    looks_like_a_tag = len(tagged) == 2 and "__type__" in tagged and "__value__" in tagged
    if not looks_like_a_tag and all(key.isascii() or type(_tag_str(key)) is str for key in tagged):
        return tagged
    return {"__type__": "dict", "__value__": [[_tag_str(key), value] for key, value in tagged.items()]}


def _key(key: Any) -> str:
    """A key as `json.dumps` writes it."""
    kind = type(key)
    if kind is str:
        return cast(str, key)
    if isinstance(key, str):
        return str.__str__(key)
    if kind is bool:
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(_tag_int(key))
    if isinstance(key, float):
        return float.__repr__(key)
    if key is None:
        return "null"
    raise _Refused(f"{{where}} has {_a(type(key).__name__)} as a key; keys are strings or numbers. Pass a list of pairs.", key)


def _tag_object(value: Any) -> Any:
    kind = type(value)
    reducer = getattr(kind, "__json__", None)
    if callable(reducer):
        return _tag_reduced(value, reducer)
    for base, tag, reduce in _TAGS:
        if isinstance(value, base):
            return {"__type__": tag, "__value__": reduce(value)}
    if isinstance(value, Enum):
        return _tag_enum(value)
    if isinstance(value, bytes):
        return _tag_bytes(value)
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return {"__type__": "decimal", "__value__": str(value)}
    uuid = sys.modules.get("uuid")
    if uuid is not None and isinstance(value, uuid.UUID):
        return {"__type__": "uuid", "__value__": {"hex": value.hex}}
    if isinstance(value, str):
        return _tag(str.__str__(value))
    if isinstance(value, int):
        return _tag(int(value))
    if isinstance(value, float):
        return _tag(float(value))
    if hasattr(kind, "__dataclass_fields__"):
        return _tag_dataclass(value)
    if isinstance(value, dict):
        return _tag_dict(value)
    if isinstance(value, (list, tuple)):
        return _tag_items(value)
    if _is_from(kind, "django.utils.functional", "Promise"):  # a translation that is made when it is read
        return _tag(str(value))
    raise _Refused(_why_refused(value), value)


_TAGS: list[tuple[type, str, Callable[[Any], Any]]] = [
    (_datetime.datetime, "datetime", lambda value: value.isoformat()),
    (_datetime.date, "date", lambda value: value.isoformat()),
    (_datetime.time, "time", lambda value: value.isoformat()),
    (_datetime.timedelta, "timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
]


def _tag_reduced(value: Any, reducer: Callable[[Any], Any]) -> Any:
    try:
        reduced = reducer(value)
    except RecursionError:
        raise
    except Exception as exc:
        name = type(value).__name__
        raise _Refused(f"{{where}} is {_a(name)}, whose __json__ raised {_braces(repr(exc))}.", value, exc) from exc
    return _tag(reduced)


def _tag_bytes(value: bytes) -> dict[str, Any]:
    try:
        return {"__type__": "bytes", "__value__": value.decode()}
    except UnicodeDecodeError:
        return {"__type__": "base64", "__value__": b64encode(value).decode()}


def _tag_enum(value: Enum) -> dict[str, Any]:
    kind = type(value)
    named: dict[str, Any] = _named(kind)
    if isinstance(value, Flag):  # several flags at once have no name of their own
        named["value"] = value.value
    else:
        named["name"] = value.name
    return {"__type__": "enum", "__value__": named}


def _tag_dataclass(value: Any) -> dict[str, Any]:
    kind = type(value)
    from dataclasses import fields as fields_of

    fields: dict[str, Any] = {}
    name = ""
    try:
        for name in [field.name for field in fields_of(kind)]:
            try:
                field = getattr(value, name)
            except AttributeError:
                continue  # a field that was never set, or was deleted
            fields[name] = _tag(field)
    except _Refused as refused:
        refused.steps.append(f".{name}")
        raise
    return {"__type__": "dataclass", "__value__": {**_named(kind), "fields": fields}}


def _named(kind: type) -> dict[str, Any]:
    """Where a reader will find the class. Refused when it could not find it even here."""
    module, qualname = kind.__module__, kind.__qualname__
    if _loaded(module, qualname) is not kind:
        raise _Refused(
            f"{{where}} is {_a(_braces(kind.__name__))}, whose class cannot be found as {_braces(module)}.{_braces(qualname)}. Define it at the top of a module, or pass plain data.",
            kind,
        )
    return {"module": module, "qualname": qualname}


def _loaded(module: str, qualname: str) -> Any:
    """What has this name in a module that is loaded; None when nothing has. Never imports."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        if found is None:
            return None
        # Not getattr: a module's __getattr__ may import.
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    return found


# -- why not? ----------------------------------------------------------------------------------------------------------


def _why_refused(value: Any) -> str:
    kind = type(value)
    name = _braces(kind.__name__)
    if hasattr(kind, "_meta") and hasattr(kind, "pk"):
        variable = _braces(kind.__name__.lower())
        return (
            f"{{where}} is {_a(name)} (a Django model instance), which cannot be sent: the row may have changed before the task runs."
            f" Pass the primary key, {variable}.pk, and load it in the task."
        )
    if _is_from(kind, "django.db.models.query", "QuerySet"):
        return f"{{where}} is {_a(name)} (a Django query). Pass the primary keys, list(query.values_list('pk', flat=True)), and query in the task."
    if isinstance(value, (set, frozenset)):
        return f"{{where}} is {_a(name)}, which JSON has no word for. Pass a list: sorted(…) or list(…)."
    if isinstance(value, (bytearray, memoryview)):
        return f"{{where}} is {_a(name)}. Pass bytes(…) of it."
    if isinstance(value, type):
        return f"{{where}} is the class {_braces(value.__qualname__)}. Pass data, for example its name."
    if kind.__name__ in ("generator", "map", "filter", "zip", "range", "dict_keys", "dict_values", "dict_items"):
        return f"{{where}} is {_a(name)}. Pass list(…) of it."
    if isinstance(value, (str, bytes)) or not callable(value):
        return (
            f"{{where}} is {_a(name)} ({_braces(kind.__module__)}.{_braces(kind.__qualname__)}), which cannot be sent."
            " Pass plain data (text, numbers, lists, dicts, dates, Decimal, UUID, bytes, an Enum or a dataclass), or give the class a __json__ method."
        )
    return f"{{where}} is {_a(name)} ({_braces(repr(value)[:80])}). Code cannot be sent; pass data."


def _is_from(kind: type, module: str, name: str) -> bool:
    return any(base.__name__ == name and base.__module__ == module for base in kind.__mro__)


def _a(name: str) -> str:
    return f"an {name}" if name[:1].lower() in ("a", "e", "i", "o") else f"a {name}"


def _braces(text: str) -> str:
    """Text that stands in a template."""
    return text.replace("{", "{{").replace("}", "}}")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# -- reading -----------------------------------------------------------------------------------------------------------


def _parse(data: bytes) -> Any:
    try:
        return _decode(data)
    except (ValueError, RecursionError) as exc:
        return _parse_loosely(data, exc)


def _parse_loosely(data: bytes, problem: BaseException) -> Any:
    """Python's own JSON writes NaN, Infinity and lone surrogates, so other programs may have sent them."""
    import json

    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DecodeError(f"Not JSON: {problem} in {_brief(data[:80])}.") from None


def _revived(value: Any) -> Any:
    try:
        return _revive(value)
    except RecursionError:
        raise DecodeError("The value is nested too deeply.") from None


def _revive(value: Any) -> Any:
    kind = type(value)
    if kind is list or kind is tuple:
        return [_revive(item) for item in value]
    if kind is not dict:
        return value
    if len(value) == 2 and "__type__" in value and "__value__" in value:
        return _revive_tag(value["__type__"], value["__value__"])
    return {key: _revive(item) for key, item in value.items()}


def _revive_tag(tag: Any, value: Any) -> Any:
    reviver = _REVIVERS.get(tag) if type(tag) is str else None
    if reviver is None:
        raise DecodeError(
            f"Unknown type tag {_brief(tag)} (known are {', '.join(_REVIVERS)}). Was this sent by a program with types of its own?"
        )
    try:
        return reviver(value)
    except (DecodeError, RecursionError):
        raise
    except Exception as exc:
        raise DecodeError(f"{_brief(value)} is no {tag}: {exc or type(exc).__name__}.") from exc


def _revive_date(value: Any) -> _datetime.date:
    return _datetime.datetime.fromisoformat(value).date()


def _revive_decimal(value: Any) -> Any:
    from decimal import Decimal

    return Decimal(_text(value))


def _revive_uuid(value: Any) -> Any:
    from uuid import UUID

    return UUID(hex=_text(value["hex"]))


def _revive_float(value: Any) -> float:
    if value not in ("nan", "inf", "-inf"):
        raise DecodeError(f"{_brief(value)} is no float: it must be 'nan', 'inf' or '-inf'.")
    return float(value)


def _revive_timedelta(value: Any) -> _datetime.timedelta:
    days, seconds, microseconds = value
    return _datetime.timedelta(days, seconds, microseconds)


def _revive_str(value: Any) -> str:
    return b64decode(_text(value), validate=True).decode("utf-8", "surrogatepass")


def _revive_dict(value: Any) -> dict[str, Any]:
    return {_text(_revive(key)): _revive(item) for key, item in value}


def _revive_enum(value: Any) -> Any:
    kind = _class_named(value, "Enum")
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise DecodeError(f"{value['module']}.{value['qualname']} is not an Enum here.")
    if "value" not in value:
        if value["name"] not in kind.__members__:
            raise DecodeError(
                f"{value['module']}.{value['qualname']} has no member {_brief(value['name'])} here (it has {', '.join(kind.__members__)})."
            )
        return kind[value["name"]]
    if not issubclass(kind, Flag) or type(value["value"]) is not int:
        raise DecodeError(f"{value['module']}.{value['qualname']} is not a Flag here.")
    return kind(value["value"])


def _revive_dataclass(value: Any) -> Any:
    from dataclasses import MISSING, fields, is_dataclass

    kind = _class_named(value, "dataclass")
    where = f"{value['module']}.{value['qualname']}"
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise DecodeError(f"{where} is not a dataclass here.")
    given = value["fields"]
    known = fields(kind)
    unknown = set(given) - {field.name for field in known}
    if unknown:
        raise DecodeError(f"{where} has no field {', '.join(map(repr, sorted(unknown)))} here. Is an older version deployed?")
    # Not through __init__: the values have been through it once, and what its InitVars were is gone.
    make: Any = kind.__new__
    instance = make(kind)
    for field in known:
        if field.name in given:
            object.__setattr__(instance, field.name, _revive(given[field.name]))
        elif field.default is not MISSING:
            object.__setattr__(instance, field.name, field.default)
        elif field.default_factory is not MISSING:
            object.__setattr__(instance, field.name, field.default_factory())
        elif field.init:
            raise DecodeError(f"{where} needs the field {field.name!r}, which was not sent. Was it sent by an older version?")
    return instance


def _class_named(value: Any, what: str) -> Any:
    module, qualname = _text(value["module"]), _text(value["qualname"])
    found = _loaded(module, qualname)
    if found is None:
        missing = f"the module {module!r} has no {qualname!r}" if module in sys.modules else f"the module {module!r} is not loaded"
        raise DecodeError(f"The {what} {module}.{qualname} is missing here: {missing}. Import it where the tasks are defined.")
    return found


def _text(value: Any) -> str:
    if type(value) is not str:
        raise DecodeError(f"{_brief(value)} should be text.")
    return value


_REVIVERS: dict[str, Callable[[Any], Any]] = {
    "datetime": _datetime.datetime.fromisoformat,
    "date": _revive_date,
    "time": _datetime.time.fromisoformat,
    "decimal": _revive_decimal,
    "uuid": _revive_uuid,
    "bytes": lambda value: _text(value).encode(),
    "base64": lambda value: b64decode(_text(value), validate=False),
    "timedelta": _revive_timedelta,
    "float": _revive_float,
    "enum": _revive_enum,
    "dataclass": _revive_dataclass,
    "dict": _revive_dict,
    "str": _revive_str,
}


# -- exceptions --------------------------------------------------------------------------------------------------------

_OUR_MODULE = errors.__name__
_SHARED_MODULE = "celery.exceptions"
_SHARED_MODULES = frozenset({_OUR_MODULE, "celeriac.exceptions", _SHARED_MODULE, "billiard.exceptions", "kombu.exceptions"})
"""Where classes that we share with Celery may be said to live."""


def encode_exception(exc: BaseException) -> Raw:
    """An exception as data: `exc_type`, `exc_message` (its arguments), `exc_module`. What cannot be encoded becomes its repr; never raises."""
    kind = type(exc)
    module = kind.__module__
    return Raw(
        _encode(
            {
                "exc_type": _printable(kind.__qualname__),
                "exc_message": [_tag_or_repr(argument) for argument in exc.args],
                "exc_module": _SHARED_MODULE if module == _OUR_MODULE else _printable(module),
            }
        )
    )


def decode_exception(raw: Raw | bytes) -> BaseException:
    """The exception again, of its own class where that is loaded, else of a made-up class of that name. Nothing is imported or unpickled.

    Raises DecodeError when it is malformed or names something that is no exception.
    """
    data = bytes(raw)
    value = _parse(data)
    match value:
        case {"exc_type": str() as name, "exc_message": arguments}:
            module = value.get("exc_module")
        case _:
            raise DecodeError(f"{_brief(value)} is no exception: it needs exc_type, exc_message and exc_module.")
    if not isinstance(arguments, list):
        arguments = [arguments]
    args = [_revived_or_text(argument) for argument in arguments]
    kind = _exception_class(module if isinstance(module, str) else _SHARED_MODULE, name)
    try:
        exc = kind(*args)
        str(exc)
    except Exception:
        return _bare_exception(kind, args)
    return exc


def _tag_or_repr(value: Any) -> Any:
    try:
        tagged = _tag(value)
        _encode(tagged)
    except Exception:
        return _safe_repr(value)
    return tagged


def _safe_repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as exc:
        text = f"<{type(value).__name__}, whose repr raised {type(exc).__name__}>"
    return _printable(text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _revived_or_text(value: Any) -> Any:
    """An argument whose class is not loaded here must not hide the exception itself."""
    try:
        return _revived(value)
    except DecodeError:
        return _brief(value)


def _exception_class(module: str, qualname: str) -> type[BaseException]:
    if module in _SHARED_MODULES:
        shared = getattr(errors, qualname, None)
        if isinstance(shared, type) and issubclass(shared, BaseException):
            return shared
    found = _loaded(module, qualname)
    if found is None:
        return _made_up(module, qualname)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise DecodeError(f"{module}.{qualname} is not an exception class; this is no exception of ours.")
    return found


@lru_cache(maxsize=256)
def _made_up(module: str, qualname: str) -> type[BaseException]:
    name = qualname.rpartition(".")[2] or "Exception"
    return type(
        name, (Exception,), {"__module__": module, "__qualname__": qualname, "__doc__": "Stands for a class that is not loaded here."}
    )


def _bare_exception(kind: type[BaseException], args: list[Any]) -> BaseException:
    """Without its own constructor, which wants other arguments than `args`; but of its class, so that `except` finds it."""
    try:
        exc = kind.__new__(kind)
        exc.args = tuple(args)
        str(exc)
    except Exception:
        return Exception(f"{kind.__module__}.{kind.__qualname__}{tuple(args)!r}")
    return exc


# -- formats that an operator may name ---------------------------------------------------------------------------------


def _encode_other(
    args: Sequence[Any], kwargs: Mapping[str, Any], embed: Mapping[str, Any] | None, serializer: str, accept: Iterable[str] | None
) -> tuple[str, Raw]:
    name = serializer_named(serializer)
    if name is None:
        raise EncodeError(f"Unknown serializer {serializer!r}. Known are {', '.join(CONTENT_TYPES)}.")
    if accept is not None and CONTENT_TYPES[name] not in content_types(accept):
        raise EncodeError(
            f"Serializer {serializer!r} is not in accept_content ({', '.join(sorted(accept))}): no worker would read it. Add it there, or use 'json'."
        )
    if name == "json":
        return encode_body(args, kwargs, embed)
    try:
        if name == "pickle":
            import pickle

            encoded = pickle.dumps([tuple(args), dict(kwargs), _embedded(embed)], protocol=pickle.HIGHEST_PROTOCOL)
        elif name == "yaml":
            encoded = _yaml(EncodeError).safe_dump(_tagged_body(args, kwargs, embed), allow_unicode=True).encode()
        else:
            import msgspec.msgpack

            encoded = msgspec.msgpack.encode(_tagged_body(args, kwargs, embed))
    except EncodeError:
        raise
    except Exception as exc:
        raise EncodeError(f"The arguments cannot be encoded with {name}: {exc}.", "args") from exc
    return CONTENT_TYPES[name], Raw(_encode(b64encode(encoded).decode()))


def _decode_other(message: Message, accept: Iterable[str]) -> Any:
    name = _NAMES.get(message.content_type)
    if message.content_type not in accept and (name is None or (name not in accept and CONTENT_TYPES[name] not in accept)):
        raise ContentDisallowed(
            f"The body is {message.content_type}{f' ({name})' if name else ''}, and accept_content allows {', '.join(sorted(accept)) or 'nothing'}."
            " Only add a format to it when you trust everybody who can send."
        )
    if name is None:
        raise ContentDisallowed(f"The body is {message.content_type!r}, which nothing here can read. Known are {', '.join(_NAMES)}.")
    body = bytes(message.body)
    if name == "json":
        return _revived(_parse(body))
    try:
        encoded = b64decode(_text(_decode(body)), validate=True)
        if name == "pickle":
            import pickle

            return pickle.loads(encoded)
        if name == "yaml":
            return _revived(_yaml(DecodeError).safe_load(encoded))
        import msgspec.msgpack

        return _revived(msgspec.msgpack.decode(encoded))
    except DecodeError:
        raise
    except Exception as exc:
        raise DecodeError(f"The body is not the {name} that it claims to be: {exc!r}.") from exc


def _yaml(error: type[EncodeError] | type[DecodeError]) -> Any:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise error("Serializer 'yaml' needs PyYAML: pip install pyyaml.") from None
    return yaml
