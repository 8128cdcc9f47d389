"""Whatever goes in comes out as what it was, or is refused at the call; and nothing that is read can do harm."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pickle
import sys
import types
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from celeriac.core import errors
from celeriac.core.errors import ContentDisallowed, DecodeError, EncodeError
from celeriac.core.message import Message
from celeriac.core.serialize import decode_body, decode_exception, decode_value, encode_body, encode_exception, encode_value

NO_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Status(enum.StrEnum):
    OPEN = "open"


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@dataclasses.dataclass
class Point:
    x: int
    when: dt.datetime | None = None
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    total: decimal.Decimal
    start: Point
    seed: dataclasses.InitVar[int] = 0
    twice: int = dataclasses.field(init=False, default=0)

    def __post_init__(self, seed: int) -> None:
        object.__setattr__(self, "twice", 2 * seed)


class Outer:
    class Shape(enum.Enum):
        ROUND = 1


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __json__(self) -> Any:
        return {"cents": decimal.Decimal(self.cents)}


class Stubborn(Exception):
    """Wants other arguments than it keeps."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def message(body: Raw | bytes, content_type: str = "application/json") -> Message:
    return Message(id="1", task="t", body=body if isinstance(body, Raw) else Raw(body), content_type=content_type)


def there_and_back(value: Any) -> Any:
    return decode_value(encode_value(value))


def same(a: Any, b: Any) -> bool:
    """Equal, of the same type all the way down, and NaN is NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, decimal.Decimal):
        return str(a) == str(b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, dt.datetime | dt.time):
        return a == b and a.utcoffset() == b.utcoffset()
    return bool(a == b)


zones = st.one_of(st.none(), st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))))
texts = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**100), 10**100),
    st.floats(),
    texts,
    st.binary(),
    st.datetimes(timezones=zones),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.sampled_from([*Colour, *Level, *Status, Right.READ, Right.READ | Right.WRITE, Right(0), Outer.Shape.ROUND]),
    st.builds(Point, st.integers(), st.none() | st.datetimes()),
)
keys = st.one_of(texts, st.sampled_from(["__type__", "__value__", "datetime"]))
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)), max_leaves=12
)


class TestValues:
    @given(values)
    @settings(max_examples=400, deadline=None)
    def test_arrive_as_what_they_were(self, value: Any) -> None:
        encoded = bytes(encode_value(value))
        json.loads(encoded, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        assert same(decode_value(encoded), value)

    @given(st.lists(values, max_size=3), st.dictionaries(keys, values, max_size=3))
    @settings(max_examples=300, deadline=None)
    def test_arguments_arrive_as_what_they_were(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        content_type, body = encode_body(args, kwargs, None)
        got_args, got_kwargs, embed = decode_body(message(body, content_type), frozenset({"json"}))
        assert type(got_args) is tuple and same(list(got_args), args) and same(got_kwargs, kwargs)
        assert embed == NO_EMBED

    @given(st.dictionaries(keys, values, min_size=1, max_size=3))
    @settings(max_examples=100, deadline=None)
    def test_a_dict_that_looks_like_a_tag_survives(self, inner: dict[str, Any]) -> None:
        for value in ({"__type__": "datetime", "__value__": inner}, {"__type__": inner}, {"__type__": "dict", "__value__": [], **inner}):
            assert same(there_and_back(value), value)
            assert same(there_and_back([[value]]), [[value]])

    @pytest.mark.parametrize(
        ("value", "written"),
        [
            (dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), {"__type__": "datetime", "__value__": "2026-01-02T03:04:05.000006+00:00"}),
            (dt.date(2026, 1, 2), {"__type__": "date", "__value__": "2026-01-02"}),
            (dt.time(3, 4), {"__type__": "time", "__value__": "03:04:00"}),
            (decimal.Decimal("1.10"), {"__type__": "decimal", "__value__": "1.10"}),
            (uuid.UUID(int=5), {"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000005"}}),
            (b"abc", {"__type__": "bytes", "__value__": "abc"}),
            (b"\xff", {"__type__": "base64", "__value__": "/w=="}),
        ],
    )
    def test_are_written_as_kombu_writes_them(self, value: Any, written: Any) -> None:
        assert json.loads(bytes(encode_value([value]))) == [written]

    def test_what_kombu_writes_is_read(self) -> None:
        assert decode_value(b'{"__type__":"date","__value__":"2026-01-02T00:00:00"}') == dt.date(2026, 1, 2)
        assert decode_value(b'{"__type__":"datetime","__value__":"2026-01-02T03:04:05Z"}') == dt.datetime(
            2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC
        )

    def test_tuples_become_lists_and_keys_become_text(self) -> None:
        assert there_and_back(((1, (2,)), collections.OrderedDict(a=1))) == [[1, [2]], {"a": 1}]
        odd = {2: "a", True: "b", None: "c", 1.5: "d", Status.OPEN: "e", Level.LOW.value + 2: "f", -2.5: "g"}
        assert there_and_back(odd) == json.loads(json.dumps(odd))

    def test_subclasses_of_plain_types_are_plain(self) -> None:
        class Text(str):
            pass

        class Pair(collections.namedtuple("Pair", "a b")):
            pass

        back = there_and_back([Text("x"), Pair(1, 2), collections.defaultdict(list, {"k": [1]})])
        assert back == ["x", [1, 2], {"k": [1]}] and type(back[0]) is str

    def test_objects_with_json_are_asked(self) -> None:
        assert there_and_back(Money(5)) == {"cents": decimal.Decimal(5)}

    def test_a_dataclass_is_not_made_twice(self) -> None:
        order = Order(decimal.Decimal("9.90"), Point(1, None, ["a"]), seed=21)
        back = there_and_back(order)
        assert back == order and type(back) is Order and back.twice == 42

    def test_fields_that_a_newer_version_added_get_their_defaults(self) -> None:
        raw = encode_value(Point(1, None, ["a"]))
        older = json.loads(bytes(raw))
        older["__value__"]["fields"] = {"x": 3}
        assert decode_value(json.dumps(older).encode()) == Point(3)
        older["__value__"]["fields"] = {"tags": []}
        with pytest.raises(DecodeError, match="needs the field 'x'"):
            decode_value(json.dumps(older).encode())
        older["__value__"]["fields"] = {"x": 1, "y": 2}
        with pytest.raises(DecodeError, match="no field 'y' here"):
            decode_value(json.dumps(older).encode())


class TestRefusals:
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ({1, 2}, "args[0] is a set, which JSON has no word for. Pass a list"),
            (frozenset(), "frozenset"),
            (object(), "args[0] is an object (builtins.object), which cannot be sent"),
            (lambda: 1, "Code cannot be sent"),
            (int, "args[0] is the class int"),
            (iter([]), "list_iterator"),
            (range(3), "Pass list(…)"),
            (bytearray(b"x"), "Pass bytes(…)"),
            ({(1, 2): 3}, "has a tuple as a key"),
            pytest.param(10**5000, "more than 3900 digits", id="huge"),
        ],
    )
    def test_say_what_to_do(self, value: Any, words: str) -> None:
        with pytest.raises(EncodeError) as caught:
            encode_body((value,), {})
        assert words in str(caught.value) and caught.value.path == "args[0]"

    def test_name_the_path(self) -> None:
        with pytest.raises(EncodeError) as caught:
            encode_body((1,), {"user": {"tags": [0, Point(1, tags=[{1}])]}})  # type: ignore[list-item]
        assert caught.value.path == "kwargs['user']['tags'][1].tags[0]"
        with pytest.raises(EncodeError, match=r"^result\[0\] is a set"):
            encode_value([{1}], "result")

    def test_a_model_instance_gets_advice(self) -> None:
        class User:
            _meta = object()
            pk = 5

        with pytest.raises(EncodeError) as caught:
            encode_body((User(),), {})
        assert str(caught.value).startswith("args[0] is a User (a Django model instance)")
        assert "user.pk, and load it in the task" in str(caught.value)

    def test_a_query_gets_advice(self) -> None:
        query = type("QuerySet", (), {"__module__": "django.db.models.query"})
        with pytest.raises(EncodeError, match="values_list"):
            encode_body((query(),), {})

    def test_a_lazy_translation_is_text(self) -> None:
        promise = type("Promise", (), {"__module__": "django.utils.functional"})
        lazy = type("proxy", (promise,), {"__str__": lambda self: "Hallo"})
        assert there_and_back(lazy()) == "Hallo"

    def test_what_contains_itself(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(EncodeError, match=r"args\[1\] is nested too deeply, or contains itself"):
            encode_body((1, endless), {})

    def test_json_method_that_raises(self) -> None:
        class Broken:
            def __json__(self) -> Any:
                raise ValueError("{no}")

        with pytest.raises(EncodeError, match=r"args\[0\] is a Broken, whose __json__ raised ValueError\('\{no\}'\)"):
            encode_body((Broken(),), {})

    def test_a_class_that_nobody_could_find(self) -> None:
        class Local(enum.Enum):
            A = 1

        with pytest.raises(EncodeError, match="Define it at the top of a module"):
            encode_value(Local.A)

    def test_argument_names_that_are_no_text(self) -> None:
        with pytest.raises(EncodeError, match="names of arguments are strings"):
            encode_body((), {1: object()})  # type: ignore[dict-item]


class TestReadingIsSafe:
    @pytest.mark.promise(10)
    def test_no_module_is_imported(self) -> None:
        module = "xml.dom.pulldom"
        sys.modules.pop(module, None)
        for tag in ("enum", "dataclass"):
            raw = json.dumps({"__type__": tag, "__value__": {"module": module, "qualname": "PullDOM", "name": "A", "fields": {}}}).encode()
            with pytest.raises(DecodeError, match=f"{module}.PullDOM is missing here: the module '{module}' is not loaded"):
                decode_value(raw)
        exc = decode_exception(json.dumps({"exc_type": "PullDOM", "exc_message": ["x"], "exc_module": module}).encode())
        assert type(exc).__name__ == "PullDOM" and exc.args == ("x",) and isinstance(exc, Exception)
        assert module not in sys.modules

    @pytest.mark.promise(10)
    def test_a_module_is_not_asked_for_what_it_has_not_got(self) -> None:
        lazy = types.ModuleType("lazy_module_of_tests")
        lazy.__getattr__ = lambda name: pytest.fail("asked")  # type: ignore[method-assign]
        sys.modules["lazy_module_of_tests"] = lazy
        try:
            with pytest.raises(DecodeError, match="has no 'Colour'"):
                decode_value(b'{"__type__":"enum","__value__":{"module":"lazy_module_of_tests","qualname":"Colour","name":"A"}}')
        finally:
            del sys.modules["lazy_module_of_tests"]

    @pytest.mark.promise(10)
    @pytest.mark.parametrize("tag", ["enum", "dataclass"])
    @pytest.mark.parametrize(("module", "qualname"), [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), (__name__, "Money")])
    def test_other_classes_are_refused(self, tag: str, module: str, qualname: str) -> None:
        raw = json.dumps({"__type__": tag, "__value__": {"module": module, "qualname": qualname, "name": "x", "fields": {}}}).encode()
        with pytest.raises(DecodeError):
            decode_value(raw)

    @pytest.mark.promise(10)
    @pytest.mark.parametrize(("module", "name"), [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("builtins", "int")])
    def test_what_is_no_exception_is_refused(self, module: str, name: str) -> None:
        with pytest.raises(DecodeError, match="not an exception class"):
            decode_exception(json.dumps({"exc_type": name, "exc_message": ["true"], "exc_module": module}).encode())

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{",
            b"\xff",
            b'"\xff"',
            b"[" * 100_000 + b"]" * 100_000,
            b'{"__type__":"nope","__value__":1}',
            b'{"__type__":["x"],"__value__":1}',
            b'{"__type__":"datetime","__value__":5}',
            b'{"__type__":"datetime","__value__":"yesterday"}',
            b'{"__type__":"decimal","__value__":"x"}',
            b'{"__type__":"decimal","__value__":[1]}',
            b'{"__type__":"uuid","__value__":{"fields":[1]}}',
            b'{"__type__":"uuid","__value__":"x"}',
            b'{"__type__":"timedelta","__value__":[1e308,1,1]}',
            b'{"__type__":"timedelta","__value__":3}',
            b'{"__type__":"float","__value__":"1"}',
            b'{"__type__":"base64","__value__":"a"}',
            b'{"__type__":"bytes","__value__":1}',
            b'{"__type__":"str","__value__":"?"}',
            b'{"__type__":"dict","__value__":[1]}',
            b'{"__type__":"dict","__value__":[[[],1]]}',
            b'{"__type__":"enum","__value__":{"module":1,"qualname":2}}',
            b'{"__type__":"enum","__value__":null}',
            b'{"__type__":"dataclass","__value__":{}}',
        ],
    )
    def test_malformed_values(self, raw: bytes) -> None:
        with pytest.raises(DecodeError):
            decode_value(raw)

    def test_an_enum_member_that_is_gone(self) -> None:
        named = {"module": __name__, "qualname": "Colour", "name": "GREEN"}
        with pytest.raises(DecodeError, match=r"no member 'GREEN' here \(it has RED, BLUE\)"):
            decode_value(json.dumps({"__type__": "enum", "__value__": named}).encode())

    @given(st.binary(max_size=60))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes_are_read_or_refused(self, raw: bytes) -> None:
        try:
            decode_value(raw)
            decode_body(message(raw))
        except DecodeError:
            pass

    def test_python_json_of_others_is_read(self) -> None:
        got = decode_value(json.dumps([float("nan"), float("inf"), "\ud800"]).encode())
        assert math.isnan(got[0]) and got[1:] == [math.inf, "\ud800"]
        args, kwargs, embed = decode_body(message(b'[[NaN],{"a":1},null]'))
        assert math.isnan(args[0]) and kwargs == {"a": 1} and embed == {}


class TestBodies:
    def test_is_written_as_celery_writes_it(self) -> None:
        content_type, body = encode_body((2, "é"), {"a": [1.5, None]}, None)
        assert content_type == "application/json"
        assert json.loads(bytes(body)) == [[2, "é"], {"a": [1.5, None]}, NO_EMBED]

    def test_embed(self) -> None:
        class Signature(dict[str, Any]):
            pass

        signature = Signature(task="t", args=(dt.timedelta(seconds=1),), kwargs={}, options={})
        _, body = encode_body((), {}, {"callbacks": [signature]})
        _, _, embed = decode_body(message(body))
        assert embed == {**NO_EMBED, "callbacks": [{"task": "t", "args": [dt.timedelta(seconds=1)], "kwargs": {}, "options": {}}]}

    @pytest.mark.parametrize("body", [b"1", b"[]", b"[[],{}]", b"[{},[],{}]", b"[[],{},3]", b'["x",{},null]', b'{"args":[]}', b"nonsense"])
    def test_malformed(self, body: bytes) -> None:
        with pytest.raises(DecodeError):
            decode_body(message(body))

    def test_without_embed(self) -> None:
        assert decode_body(message(b'[[1],{"a":2},null]')) == ((1,), {"a": 2}, {})

    def test_big_ones(self) -> None:
        text = "é" * 5_000_000
        _, body = encode_body((text,), {})
        assert decode_body(message(body))[0] == (text,)

    @pytest.mark.parametrize("name", ["pickle", "msgpack"])
    def test_formats_that_the_operator_names(self, name: str) -> None:
        args = (1, "x", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), b"\xff", decimal.Decimal("1.1"))
        content_type, body = encode_body(args, {"a": 1}, None, name, accept={name})
        sent = message(body, content_type)
        assert decode_body(sent, frozenset({"json", name})) == (args, {"a": 1}, NO_EMBED)
        assert decode_body(sent, frozenset({content_type}))[0] == args
        with pytest.raises(ContentDisallowed, match=rf"{name}\), and accept_content allows json"):
            decode_body(sent, frozenset({"json"}))

    def test_yaml_says_what_it_needs(self) -> None:
        try:
            import yaml  # noqa: F401
        except ImportError:
            with pytest.raises(EncodeError, match="pip install pyyaml"):
                encode_body((), {}, None, "yaml")
        else:
            content_type, body = encode_body((1, b"\xff"), {}, None, "yaml")
            assert decode_body(message(body, content_type), frozenset({"yaml"}))[0] == (1, b"\xff")

    def test_an_unknown_serializer(self) -> None:
        with pytest.raises(EncodeError, match="Unknown serializer 'jsn'. Known are json, pickle, yaml, msgpack"):
            encode_body((), {}, None, "jsn")

    def test_a_serializer_that_no_worker_accepts(self) -> None:
        with pytest.raises(EncodeError, match="not in accept_content"):
            encode_body((), {}, None, "pickle", accept=("json",))

    @pytest.mark.promise(10)
    def test_pickle_is_not_touched_unless_it_is_accepted(self) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return (pytest.fail, ("unpickled",))

        bomb = json.dumps(base64.b64encode(pickle.dumps([[Bomb()], {}, None])).decode()).encode()
        with pytest.raises(ContentDisallowed):
            decode_body(message(bomb, "application/x-python-serialize"), frozenset({"json"}))

    def test_an_unknown_content_type(self) -> None:
        for content_type in ("application/x-strange", ""):
            with pytest.raises(ContentDisallowed):
                decode_body(message(b'"x"', content_type), frozenset({"json", "application/x-strange"}))

    def test_json_that_is_not_accepted(self) -> None:
        with pytest.raises(ContentDisallowed):
            decode_body(message(b"[[],{},{}]"), frozenset({"msgpack"}))

    @pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-msgpack"])
    @pytest.mark.parametrize("body", [b"1", b'"?"', b'"AAAA"', b'""'])
    def test_malformed_in_other_formats(self, content_type: str, body: bytes) -> None:
        with pytest.raises(DecodeError):
            decode_body(message(body, content_type), frozenset({content_type}))


class TestExceptions:
    def test_are_written_as_celery_writes_them(self) -> None:
        written = json.loads(bytes(encode_exception(ValueError("é", 1))))
        assert written == {"exc_type": "ValueError", "exc_message": ["é", 1], "exc_module": "builtins"}

    def test_ours_have_celerys_module(self) -> None:
        raw = encode_exception(errors.TaskRevokedError("expired"))
        assert json.loads(bytes(raw))["exc_module"] == "celery.exceptions"
        assert type(decode_exception(raw)) is errors.TaskRevokedError

    @pytest.mark.parametrize("module", ["celery.exceptions", "celeriac.core.errors", "billiard.exceptions", "celeriac.exceptions"])
    def test_both_names_are_ours(self, module: str) -> None:
        raw = json.dumps({"exc_type": "WorkerLostError", "exc_message": ["x"], "exc_module": module}).encode()
        assert type(decode_exception(raw)) is errors.WorkerLostError

    def test_arguments_that_cannot_travel_become_their_repr(self) -> None:
        class Nasty:
            def __repr__(self) -> str:
                raise RuntimeError

        exc = decode_exception(encode_exception(ValueError({1}, dt.date(2026, 1, 1), Nasty(), "\ud800")))
        assert exc.args[:2] == ("{1}", dt.date(2026, 1, 1)) and "Nasty" in exc.args[2] and exc.args[3] == "\ud800"

    def test_a_constructor_that_wants_something_else(self) -> None:
        exc = decode_exception(encode_exception(Stubborn(5, "no")))
        assert type(exc) is Stubborn and str(exc) == "5: no"

    def test_a_class_that_is_not_loaded_is_made_up(self) -> None:
        raw = json.dumps({"exc_type": "Declined", "exc_message": ["card"], "exc_module": "shop.errors"}).encode()
        one, two = decode_exception(raw), decode_exception(raw)
        assert type(one) is type(two) and type(one).__module__ == "shop.errors" and repr(one) == "Declined('card')"

    def test_groups(self) -> None:
        exc = decode_exception(encode_exception(ExceptionGroup("several", [ValueError(1)])))
        assert "several" in str(exc)

    def test_an_argument_of_a_lost_class_does_not_hide_the_exception(self) -> None:
        lost = {"__type__": "enum", "__value__": {"module": "gone", "qualname": "E", "name": "A"}}
        exc = decode_exception(json.dumps({"exc_type": "ValueError", "exc_message": [lost], "exc_module": "builtins"}).encode())
        assert type(exc) is ValueError and "gone" in exc.args[0]

    @pytest.mark.parametrize("raw", [b"null", b"{}", b"[]", b'{"exc_type":1,"exc_message":[]}', b"nonsense"])
    def test_malformed(self, raw: bytes) -> None:
        with pytest.raises(DecodeError):
            decode_exception(raw)

    def test_older_forms(self) -> None:
        assert decode_exception(b'{"exc_type":"KeyError","exc_message":"k","exc_module":"builtins"}').args == ("k",)
        assert type(decode_exception(b'{"exc_type":"Odd","exc_message":["k"],"exc_module":null}')).__name__ == "Odd"

    @pytest.mark.parametrize(
        "exc", [SystemExit(3), KeyboardInterrupt(), errors.Retry("again", ValueError("x"), 5), KeyError("k"), OSError(2, "x")]
    )
    def test_come_back(self, exc: BaseException) -> None:
        back = decode_exception(encode_exception(exc))
        assert type(back) is type(exc) and str(back) == str(exc)
