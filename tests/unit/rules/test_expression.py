"""Expressions: the subset of CEL, three values, types against a JSON Schema, and bounds."""

from __future__ import annotations

import math
import time

import pytest

from kneo.spec.expression import (
    MAX_CHARS,
    MAX_COMPARISONS,
    MAX_DEPTH,
    STEP_FACTS,
    ExpressionInvalid,
    call_facts,
    evaluate,
    find_type_errors,
    parse,
)

REFUND = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "amount": {"type": "number"},
        "currency": {"type": "string"},
        "note": {"type": ["string", "null"]},
        "lines": {"type": "array"},
        "urgent": {"type": "boolean"},
        "to": {"type": "object", "properties": {"iban": {"type": "string"}}},
        "open": {},
    },
}


def value_of(text: str, **args: object) -> bool | None:
    return evaluate(parse(text), {"args": args, "values": {"amount": 5}, "tool": "refund"})


@pytest.mark.parametrize(
    ("text", "args", "result"),
    [
        ("args.amount > 100 || args.currency != 'EUR'", {"amount": 101, "currency": "EUR"}, True),
        ("args.amount > 100 || args.currency != 'EUR'", {"amount": 100, "currency": "EUR"}, False),
        ("args.amount > 100 || args.currency != 'EUR'", {"currency": "USD"}, True),
        ("args.amount > 100 || args.currency != 'EUR'", {"currency": "EUR"}, None),
        ("args.amount > 100 && args.currency != 'EUR'", {"currency": "EUR"}, False),
        ("100 < args.amount", {"amount": 100.5}, True),
        ("-1 <= args.amount", {"amount": -1}, True),
        ("args.amount == 3", {"amount": 3.0}, True),
        ("args.amount > 2", {"amount": True}, None),
        ("args.amount > 2", {"amount": "3"}, None),
        ("args.amount > 2", {"amount": None}, None),
        ("args.amount == 2", {"amount": "2"}, None),
        ("args.amount != 2", {"amount": "2"}, None),
        ("args.amount > 1", {"amount": math.inf}, None),
        ("!(args.amount > 1)", {"amount": math.nan}, None),
        ("args.amount == null", {"amount": math.nan}, None),
        ("args.amount > 1", {"amount": 10**400}, True),
        ("args.note == null", {"note": None}, True),
        ("args.note == null", {"note": "x"}, False),
        ("args.note != null", {"note": {}}, True),
        ("args.note == null", {}, None),
        ("args.note == 'x'", {"note": {}}, None),
        ("args.lines == args.lines", {"lines": [1]}, None),
        ("args.urgent", {"urgent": True}, True),
        ("!args.urgent", {"urgent": True}, False),
        ("args.urgent", {"urgent": "yes"}, None),
        ("args.urgent > false", {"urgent": True}, None),
        ("args.currency < 'F'", {"currency": "EUR"}, True),
        ("args.currency in ['EUR', 'CHF']", {"currency": "CHF"}, True),
        ("args.currency in ['EUR', 'CHF']", {"currency": "USD"}, False),
        ("args.currency in ['EUR', 1]", {"currency": "USD"}, None),
        ("args.currency in []", {"currency": "USD"}, None),
        ("args.currency in ['EUR']", {}, None),
        ("has(args.note)", {"note": None}, True),
        ("has(args.to.iban)", {"to": "x"}, False),
        ("has(args.to.iban) && args.to.iban.startsWith('DE')", {}, False),
        ("size(args.lines) <= 2", {"lines": [1, 2]}, True),
        ("size(args.currency) == 1", {"currency": "\U0001f600"}, True),
        ("size(args.amount) == 1", {"amount": 1}, None),
        ("args.currency.matches('^[A-Z]{3}$')", {"currency": "EUR"}, True),
        ("args.currency.matches('^[A-Z]{3}$')", {"currency": "\ud800"}, None),
        ("args.currency.contains('U')", {"currency": "EUR"}, True),
        ("args.currency.endsWith('U')", {"currency": 5}, None),
        ("args['a-b'] == \"it's\"", {"a-b": "it's"}, True),
        ("args.amount != values.amount", {"amount": 5}, False),
        ("args.amount != values.amount", {"amount": 6}, True),
        ("args.amount != values.other", {"amount": 6}, None),
        ("tool == 'refund'", {}, True),
    ],
)
def test_an_expression_is_true_false_or_unknown(text: str, args: dict, result: bool | None) -> None:
    assert value_of(text, **args) is result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "when, column 1: expected a value, found the end."),
        ("args.amount >=", "when, column 15: expected a value, found the end."),
        ("args.amount > 1 args", "when, column 17: expected the end, found args."),
        ("(args.amount > 1", "when, column 17: expected ), found the end."),
        ("args.amount @ 1", "when, column 13: unexpected '@'."),
        ("'a' == 'b'", "when, column 5: expected a path on one side."),
        ("5", "when, column 2: a value alone is no condition."),
        ("size(args.a)", "when, column 13: a value alone is no condition."),
        ("(args.a > 1) == true", "when, column 14: conditions are not compared."),
        ("args.a < args.b < args.c", "when, column 17: expected the end, found <."),
        ("exec(args)", "when, column 1: there is no function exec."),
        ("args.a.lower('x') == 1", "when, column 8: there is no function lower."),
        ("args.a.matches(args.b)", "when, column 16: expected a text in quotes, found args."),
        ("args.a.matches('(a')", "when, column 16: The pattern is no regular expression: missing ): (a."),
        (
            "args.a.matches('(?=a)')",
            "when, column 16: The pattern cannot be matched in linear time: invalid perl operator: (?=.",
        ),
        ("args.a in args.b", "when, column 11: expected [, found args."),
        ("args.a in [args.b]", "when, column 12: expected a value, found args."),
        ("args.in > 1", "when, column 6: expected a name, found in."),
        ("args.a == 1e999", "when, column 11: the number is too large."),
        (f"args.a == {2**63}", "when, column 11: the number is too large."),
        ("args.a == '\\x41'", "when, column 11: unknown escape \\x."),
        ("has(has(args.a))", "when, column 1: has needs a path."),
        ("args.a == 'x", 'when, column 11: unexpected "\'".'),
        ("x" * (MAX_CHARS + 1), "when has 2001 characters; at most 2,000 are allowed."),
    ],
)
def test_a_text_that_is_no_expression_is_refused_at_its_column(text: str, message: str) -> None:
    with pytest.raises(ExpressionInvalid) as refusal:
        parse(text)
    assert refusal.value.message == message


def test_the_size_of_an_expression_is_bounded() -> None:
    parse(" && ".join(["args.a > 1"] * MAX_COMPARISONS))
    with pytest.raises(ExpressionInvalid, match="more than 50 comparisons"):
        parse(" && ".join(["args.a > 1"] * (MAX_COMPARISONS + 1)))
    parse("(" * (MAX_DEPTH - 1) + "args.a" + ")" * (MAX_DEPTH - 1))
    for opening in ("(", "!"):
        with pytest.raises(ExpressionInvalid, match="nested deeper than 20"):
            parse(opening * 500 + "args.a" + ")" * 500)


@pytest.mark.parametrize(
    ("text", "flaws"),
    [
        ("args.amount > 100 || args.currency != 'EUR'", []),
        ("args.ammount > 1", [("E_CONDITION_NAME", "refund has no argument ammount. Did you mean amount?")]),
        ("args.to.ibn == 'x'", [("E_CONDITION_NAME", "refund has no argument to.ibn. Did you mean iban?")]),
        ("has(args.ammount)", [("E_CONDITION_NAME", "refund has no argument ammount. Did you mean amount?")]),
        (
            "amount > 1",
            [("E_CONDITION_NAME", "There is no amount here. Known here: agent, args, run, tool, values.")],
        ),
        (
            "run.id == 'x'",
            [("E_CONDITION_NAME", "There is no run.id here. Known here: environment, requester, workflow.")],
        ),
        (
            "args.currency > 3",
            [("E_CONDITION_TYPE", "args.currency is a string and is compared with a number.")],
        ),
        (
            "args.currency in ['EUR', 3]",
            [("E_CONDITION_TYPE", "args.currency is a string and is compared with a number.")],
        ),
        (
            "args.currency == args.amount",
            [("E_CONDITION_TYPE", "args.currency is a string and is compared with a number.")],
        ),
        ("args.amount", [("E_CONDITION_TYPE", "args.amount is a number and is compared with a boolean.")]),
        ("args.urgent > true", [("E_CONDITION_TYPE", "args.urgent is a boolean, which has no order.")]),
        ("size(args.amount) > 1", [("E_CONDITION_TYPE", "size(args.amount) has no value: args.amount is a number.")]),
        (
            "args.note.startsWith('x') && args.amount.startsWith('x')",
            [("E_CONDITION_TYPE", "args.amount is a number and is compared with a string.")],
        ),
        ("args.note == null || args.amount == null || args.open.x > 1 || values.x == 1", []),
        ("args.amount != values.amount && run.requester == 'ann' && run.environment == null", []),
    ],
)
def test_names_and_types_are_those_of_the_schema(text: str, flaws: list) -> None:
    assert list(find_type_errors(parse(text), call_facts(REFUND), tool="refund")) == flaws


def test_a_tool_without_declared_arguments_has_any() -> None:
    assert not list(find_type_errors(parse("args.any.thing > 1"), call_facts({}), tool="refund"))
    open_schema = {**REFUND, "additionalProperties": True}
    assert not list(find_type_errors(parse("args.ammount > 1"), call_facts(open_schema), tool="refund"))


def test_a_step_has_other_names() -> None:
    assert not list(find_type_errors(parse("input == output && status == 'failed' && metadata.x > 1"), STEP_FACTS))
    flaws = list(find_type_errors(parse("args.amount > 1"), STEP_FACTS))
    assert [flaw.code for flaw in flaws] == ["E_CONDITION_NAME"]


def test_an_evaluation_takes_linear_time() -> None:
    text = " && ".join(["args.text.matches('(a+)+$') || args.text.contains('ab')"] * 25)
    expression = parse(text)
    durations = []
    for size in (50_000, 100_000):
        began = time.perf_counter()
        evaluate(expression, {"args": {"text": "a" * size + "!"}})
        durations.append(time.perf_counter() - began)
    assert durations[1] < 10 * durations[0] + 0.5
