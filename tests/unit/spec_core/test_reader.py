"""The reader lets plain data in, says where it stands, and refuses everything that two readers would read differently."""

from contextlib import suppress
from time import process_time

import pytest

from kneo.spec.documents import ReadLimits, Unreadable
from kneo.spec.reading.reader import read, read_json, read_yaml

BOTH = pytest.mark.parametrize("reader", [read_json, read_yaml])


def refusal(reader, data, **kwargs):
    with pytest.raises(Unreadable) as caught:
        reader(data, file="a.file", **kwargs)
    return caught.value


@BOTH
def test_positions_of_values_and_keys(reader):
    document = reader(b'{"a":\n [ {"b": 1,\n   "c": ["x", "y"]}]}', file="f")
    assert document.value == {"a": [{"b": 1, "c": ["x", "y"]}]}
    assert document.locate(()) == (1, 1)
    assert document.locate(("a", 0, "c", 1)) == (3, 15)
    assert document.locate(("a", 0, "c"), key=True) == (3, 4)
    assert document.locate(("a", 0, "nowhere", "at", "all")) == (2, 4), "falls back to what contains it"


def test_positions_in_block_style():
    document = read_yaml(b"# words\nagent:\n  name: n\n  tools:\n    - x\n    - y\n", file="f")
    assert document.locate(("agent", "tools", 1)) == (6, 7)
    assert document.locate(("agent", "tools"), key=True) == (4, 3)


def test_format_follows_the_suffix():
    assert read(b'{"a": [1]}', file="x.JSON").value == {"a": [1]}
    assert read(b"a: [1]", file="x.yaml").value == {"a": [1]}
    with pytest.raises(Unreadable):
        read(b"a: [1]", file="x.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("12", 12), ("-3", -3), ("+4", 4), ("0", 0), ("0x1F", 31), ("0o17", 15),
        ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), ("-1.", -1.0),
        ("2026-01-01", "2026-01-01"), ("12:30:00", "12:30:00"), ("1_000", "1_000"), ("1.2.3", "1.2.3"),
        ('"12"', "12"), ("'true'", "true"), ("a-b", "a-b"),
    ],
)  # fmt: skip
def test_scalars_of_the_core_schema(text, value):
    read_back = read_yaml(f"k: {text}\n".encode(), file="f").value["k"]
    assert read_back == value
    assert type(read_back) is type(value)


def test_keys_are_their_own_text():
    assert read_yaml(b"true: 1\nno: 2\n3: 4\n", file="f").value == {"true": 1, "no": 2, "3": 4}


@BOTH
@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b'{"a": 1,\n "a": 2}', 2, 2),
        (b'{"b": {"a": 1,\n "\\u0061": 2}}', 2, 2),
        (b"[1,\n 9007199254740993]", 2, 2),
        (b"[1,\n 1e400]", 2, 2),
        (b"[1,\n " + b"9" * 5000 + b"]", 2, 2),
        (b'["a",\n "\\u0000"]', 2, 2),
        (b"[1,\n \xff]", 2, 2),
    ],
)  # fmt: skip
def test_ambiguous_or_unstorable_values_are_refused_where_they_stand(reader, data, line, column):
    error = refusal(reader, data)
    assert (error.file, error.line, error.column) == ("a.file", line, column)
    assert str(error).startswith(f"a.file:{line}:{column}: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: &x 1\n", "Anchors"),
        (b"a: *x\n", "Aliases"),
        (b"a: !!str 1\n", "tag"),
        (b"a: ! 1\n", "tag"),
        (b"a: !!python/object/apply:os.system [id]\n", "tag"),
        (b"<<: {a: 1}\n", "Merge keys"),
        (b"a: 1\n---\nb: 2\n", "second document"),
        (b"{a: 1}: 2\n", "keys are text"),
        (b"[a]: 2\n", "keys are text"),
        (b"a: 010\n", "begins with a zero"),
        (b"a: .nan\n", "not a number"),
        (b"a: -.inf\n", "not a number"),
        (b"a: \x01\n", "U+0001"),
        (b"a: b: c\n", "not YAML"),
        (b"\ta: 1\n", "not YAML"),
    ],
)
def test_yaml_beyond_plain_data_is_refused(data, words):
    error = refusal(read_yaml, data)
    assert words in str(error)
    assert error.line is not None


@pytest.mark.parametrize(
    "data", [b"NaN", b"[Infinity]", b"[-Infinity]", b"", b"{'a': 1}", b"[1,]", b"[1] 2", b'"\\ud800"']
)
def test_what_is_not_json_is_refused(data):
    assert refusal(read_json, data).line is not None


@BOTH
def test_every_bound_is_a_setting(reader):
    assert "bytes" in str(refusal(reader, b"[1, 2]", limits=ReadLimits(max_bytes=5)))
    assert "deep" in str(refusal(reader, b"[[[1]]]", limits=ReadLimits(max_depth=2)))
    assert "keys and values" in str(refusal(reader, b"[" + b"1," * 20 + b"1]", limits=ReadLimits(max_nodes=10)))
    assert reader(b"[[1]]", file="f", limits=ReadLimits(max_bytes=5, max_depth=2, max_nodes=4)).value == [[1]]


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 30_000, b"{" * 30_000, b'{"a":' * 50_000, b"- " * 50_000, b"? " * 50_000, b"[a, " * 50_000,
        b'"' + b'\\"' * 500_000, b"'" * 1_000_000, b"\n" * 1_000_000, b"[" + b"1," * 400_000, b"!<" * 100_000,
        b"&a " * 100_000, b"%TAG !a! b\n" * 50_000, b"a: |\n" + b" x\n" * 200_000, b'"\n' * 300_000, b"x" * 2_000_000,
        b'["' + b"\\u0041" * 150_000, b"*a : " * 100_000, b"{a: " * 100_000, b"[]" * 400_000,
    ],
)  # fmt: skip
def test_hostile_text_is_answered_quickly(reader, data):
    start = process_time()
    with suppress(Unreadable):
        reader(data, file="f")
    assert process_time() - start < 2


def test_aliases_when_allowed_are_counted_by_what_they_repeat():
    allowed = ReadLimits(aliases=True, max_nodes=1000)
    document = read_yaml(b"a: &x {k: [1, 2]}\nb: *x\n", file="f", limits=allowed)
    assert document.value == {"a": {"k": [1, 2]}, "b": {"k": [1, 2]}}
    assert document.locate(("b", "k", 1)) == (1, 15)
    bomb = b"a0: &a0 [x, x, x, x]\n" + b"".join(
        b"a%d: &a%d [*a%d, *a%d, *a%d]\n" % (n, n, n - 1, n - 1, n - 1) for n in range(1, 12)
    )
    assert "keys and values" in str(refusal(read_yaml, bomb, limits=allowed))
    assert "anchor named 'y'" in str(refusal(read_yaml, b"a: *y\n", limits=allowed))


def test_a_byte_order_mark_is_not_content():
    assert read_json(b'\xef\xbb\xbf{"a": 1}', file="f").value == {"a": 1}
    assert read_yaml(b"\xef\xbb\xbfa: 1", file="f").locate(("a",), key=True) == (1, 1)
