"""Lengths: equal normal forms are equal numbers, the identities hold, and evaluation is plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.dsl.length import Length, LengthError

NAMES = ("T", "P", "dim", "heads")
T, P, dim, heads = map(Length.symbol, NAMES)

sizes = st.integers(1, 40)
environments = st.fixed_dictionaries(dict.fromkeys(NAMES, sizes))
small = st.integers(1, 12)


@dataclass(frozen=True)
class Written:
    """One way of writing a length, and the same as plain arithmetic over fractions (None: it has no value)."""

    text: str

    def length(self) -> Length:
        return eval(self.text, {"T": T, "P": P, "dim": dim, "heads": heads, "exact": exact, "ceil": ceil})  # noqa: S307

    def plain(self, env: dict[str, int]) -> int | None:
        scope = {**env, "exact": plain_exact, "ceil": lambda a, b: -(-a // b)}
        try:
            return eval(self.text, scope)  # noqa: S307
        except (ZeroDivisionError, ArithmeticError):
            return None


def exact(a: Length, b: Length) -> Length:
    return lengths(a).divided_exactly(b)


def ceil(a: Length, b: Length) -> Length:
    return lengths(a).ceil_divided(b)


def lengths(value: Length | int) -> Length:
    return value if isinstance(value, Length) else Length.number(value)


def plain_exact(a: int, b: int) -> int:
    quotient = Fraction(a, b)
    if quotient.denominator != 1:
        raise ArithmeticError
    return quotient.numerator


def trees(division: bool) -> st.SearchStrategy[str]:
    leaves = st.one_of(st.sampled_from(NAMES), small.map(lambda n: f"(T * 0 + {n})"))
    polynomials = st.recursive(
        leaves,
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        max_leaves=4,
    )
    if not division:
        return polynomials
    # Divisors are positive: a size, a number, or a sum or product of such.
    divisors = st.one_of(
        leaves,
        st.tuples(leaves, st.sampled_from("+*"), leaves).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    )

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, st.sampled_from(("//", "%")), divisors).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, divisors).map(lambda t: f"ceil({t[0]}, {t[1]})"),
        )

    return st.recursive(polynomials, grown, max_leaves=5)


def value_or_none(length: Length, env: dict[str, int]) -> int | None:
    try:
        return length.value(env)
    except LengthError:
        return None


@settings(max_examples=400)
@given(trees(division=True), environments)
def test_evaluation_agrees_with_plain_arithmetic(text: str, env: dict[str, int]) -> None:
    written = Written(text)
    expected = written.plain(env)
    assert expected is not None
    found = value_or_none(written.length(), env)
    assert found == (expected if 0 <= expected <= 1 << 48 else None)


@settings(max_examples=200)
@given(trees(division=True), trees(division=True), st.lists(environments, min_size=3, max_size=3))
def test_equal_normal_forms_evaluate_equally(one: str, other: str, envs: list[dict[str, int]]) -> None:
    a, b = Written(one).length(), Written(other).length()
    if a == b:
        assert hash(a) == hash(b)
        assert str(a) == str(b)
        assert [Written(one).plain(env) for env in envs] == [Written(other).plain(env) for env in envs]


@settings(max_examples=200)
@given(trees(division=False), trees(division=False), trees(division=False))
def test_polynomials_are_a_ring(a: str, b: str, c: str) -> None:
    x, y, z = (Written(text).length() for text in (a, b, c))
    assert x + y == y + x
    assert (x + y) + z == x + (y + z)
    assert x * y == y * x
    assert (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x - x == Length.number(0)
    assert (x + y) ** 2 == x * x + 2 * x * y + y * y


@settings(max_examples=150)
@given(trees(division=False), trees(division=False), trees(division=False), environments)
def test_exact_division_undoes_multiplication(a: str, b: str, c: str, env: dict[str, int]) -> None:
    x, y, z = (Written(text).length() for text in (a, b, c))
    if y == Length.number(0):
        return
    assert (x * y).divided_exactly(y) == x
    assert x.divided_exactly(y) * y == x
    if (by := Written(b).plain(env)) and (number := Written(a).plain(env)) is not None:
        quotient = Fraction(number, by)
        expected = quotient.numerator if quotient.denominator == 1 and 0 <= quotient <= 1 << 48 else None
        assert value_or_none(x.divided_exactly(y), env) == expected
    assert x.divided_exactly(dim) + z.divided_exactly(dim) == (x + z).divided_exactly(dim)


@settings(max_examples=150)
@given(trees(division=False), small, small)
def test_nested_divisions_are_one(text: str, a: int, b: int) -> None:
    x = Written(text).length()
    assert x.ceil_divided(a).ceil_divided(b) == x.ceil_divided(a * b)
    assert x // a // b == x // (a * b)
    assert x // P // heads == x // (P * heads)
    assert (x + a - 1) // a == x.ceil_divided(a)
    assert (x + P - 1) // P == x.ceil_divided(P)
    assert (b * x) // (b * a) == x // a
    assert (x + a * T) // a == x // a + T


def test_named_identities() -> None:
    assert heads * dim.divided_exactly(heads) == dim
    assert (4 * T).divided_exactly(2) == 2 * T
    assert T.ceil_divided(2).ceil_divided(2) == T.ceil_divided(4)
    assert T.ceil_divided(16) == (T + 15) // 16
    assert (T * P) // P == T
    assert Length.number(0) == T % 1
    assert dim.divided_exactly(2 * P + 2 * T) * (P + T) == dim.divided_exactly(2)


def test_two_axes_of_one_name_differ() -> None:
    one, other = Length.symbol("seq", 1), Length.symbol("seq", 2)
    assert one != other
    assert str(one) == str(other) == "seq"
    assert (one + 2 * other).value({1: 5, 2: 7}) == 19
    assert one.value({"seq": 4}) == 4
    assert {symbol.key for symbol in (one // other).symbols} == {1, 2}


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (T + 1, "T + 1"),
        (1 - T, "1 - T"),
        (0 - T * P, "-P * T"),
        (dim.divided_exactly(heads), "dim / heads"),
        ((3 * dim).divided_exactly(2 * heads), "3 * dim / (2 * heads)"),
        ((dim + T).divided_exactly(heads), "(T + dim) / heads"),
        (dim.divided_exactly(heads + T), "dim / (T + heads)"),
        (dim**2 * 3, "3 * dim^2"),
        (T // 4, "T // 4"),
        ((T + 1) // (P + 1), "(T + 1) // (P + 1)"),
        (P * (T // 4), "P * (T // 4)"),
        (T.ceil_divided(16), "ceil(T / 16)"),
        (T.ceil_divided(P), "ceil(T / P)"),
        (3 * T.ceil_divided(P) + 2, "3 * ceil(T / P) + 2"),
        (T.ceil_divided(4) - 1, "ceil(T / 4) - 1"),
        (T % 4, "T mod 4"),
        (P * (T % 4) + 1, "P * T - 4 * P * (T // 4) + 1"),
        (T % P + dim, "T mod P + dim"),
        (Length.number(0), "0"),
        (Length.number(-3), "-3"),
    ],
)
def test_text_is_as_a_person_writes_it(length: Length, text: str) -> None:
    assert str(length) == text


@pytest.mark.parametrize(
    ("length", "expression", "reason"),
    [
        (dim.divided_exactly(heads), "dim / heads", "does not divide: it is 10/3"),
        (T * T + dim.divided_exactly(heads), "dim / heads", "does not divide: it is 10/3"),
        (T // (P - 1), "T // (P - 1)", "divides by zero"),
        (dim.divided_exactly(P - 1), "dim / (P - 1)", "divides by zero"),
        (T - 50, "T - 50", "is -43, below zero"),
        (T**20, "T^20", f"is {7**20}, above 2^48"),
        (Length.symbol("other"), "other", "has no value"),
    ],
)
def test_a_length_without_a_value_says_which_part(length: Length, expression: str, reason: str) -> None:
    with pytest.raises(LengthError) as caught:
        length.value({"T": 7, "P": 1, "dim": 10, "heads": 3})
    assert (caught.value.expression, caught.value.reason) == (expression, reason)


def test_division_by_nothing_is_refused_at_once() -> None:
    for divide in (Length.divided_exactly, Length.__floordiv__, Length.ceil_divided, Length.__mod__):
        with pytest.raises(LengthError):
            divide(T, T - T)
