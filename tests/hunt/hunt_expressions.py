"""Random expressions on random facts, against Google's implementation of CEL.

Law: a definite result of an expression is the result of CEL. Where Kneo's is unknown, CEL's may be an error or anything else:
CEL answers that values of two types differ, and compares NaN. ``matches`` and ``size`` have tests of their own.
"""

from __future__ import annotations

import math
import random

from hunt.report import Budget, Finding, Report

from kneo.spec.expression import evaluate, parse

BATCH = 50
"""Expressions of one case; a case makes them from its seed."""

NAMES = ("a", "b", "c", "d")
VALUES: tuple[object, ...] = (
    *(0, 1, -1, 2, 100, 100.0, 0.1, -0.5, 1e300, math.nan, math.inf, -math.inf),
    *("", "EUR", "eur", "a'b", "ä", "\U0001f600", "1", True, False, None, [], [1], {}, {"n": 1}),
)
LITERALS = ("0", "1", "-1", "2", "100", "0.1", "1e3", "'EUR'", "'eur'", "'a\\'b'", '"ä"', "''", "true", "false", "null")
SIGNS = ("==", "!=", "<", "<=", ">", ">=")
METHODS, TEXTS = ("startsWith", "endsWith", "contains"), ("'E'", "''", "'ä'")


def _path(pick: random.Random) -> str:
    return pick.choice([f"args.{pick.choice(NAMES)}", f"args.{pick.choice(NAMES)}.n", "args['c']"])


def _condition(pick: random.Random, depth: int) -> str:
    if depth and pick.random() < 0.6:
        first, second = _condition(pick, depth - 1), _condition(pick, depth - 1)
        form = pick.choice(["({}) || ({})", "({}) && ({})", "{} || {}", "{} && {}", "!({})"])
        return form.format(first, second) if form.count("{}") == 2 else form.format(first)
    path = _path(pick)
    match pick.randrange(8):
        case 0:
            return f"has(args.{pick.choice(NAMES)})"
        case 1:
            return f"{path} in [{', '.join(pick.sample(LITERALS, pick.randint(1, 3)))}]"
        case 2:
            return f"{path}.{pick.choice(METHODS)}({pick.choice(TEXTS)})"
        case 3:
            return f"{path} {pick.choice(SIGNS)} {_path(pick)}"
        case 4:
            return f"{pick.choice(LITERALS)} {pick.choice(SIGNS)} {path}"
        case _:
            return f"{path} {pick.choice(SIGNS)} {pick.choice(LITERALS)}"


def _facts(pick: random.Random) -> dict[str, object]:
    return {name: pick.choice(VALUES) for name in NAMES if pick.random() < 0.85}


def hunt(budget: Budget) -> Report:
    """Compare expressions with CEL, until the budget is used up."""
    from cel_expr_python import cel  # 50 MB, which only this hunt needs

    env = cel.NewEnv(variables={"args": cel.Type.DYN})
    report = Report()
    for seed in budget.seeds():
        pick = random.Random(seed)
        report.cases += 1
        for _ in range(BATCH):
            text, args = _condition(pick, 3), _facts(pick)
            result = evaluate(parse(text), {"args": args})
            report.count({True: "true", False: "false", None: "unknown"}[result])
            if result is None:
                continue
            expected = env.compile(text, disable_check=True).eval(data={"args": args}).value()
            if expected is not result:
                facts = f"{text}\n{args}\nKneo: {result}, CEL: {expected}"
                report.findings.append(Finding(seed, "a definite result is that of CEL", facts))
    return report
