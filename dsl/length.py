"""Lengths of axes in a normal form, so that two ways of writing one length are one value.

    heads * (dim / heads)      ->  dim
    ceil(ceil(T / 2) / 2)      ->  ceil(T / 4)
    (T + P - 1) // P           ->  ceil(T / P)

A length is a polynomial over atoms, with rational coefficients and negative powers, which is where exact division
lives: `dim / heads` is `dim * heads^-1` and claims to be whole; `value` checks the claim. Atoms are symbols, floors
of quotients, and sums divided by. A ceiling is a floor (`ceil(p / q) = (p + q - 1) // q`), a remainder a difference,
so both need no atom; only printing knows them.
Symbols stand for positive integers, for which the identities hold.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from functools import cached_property, lru_cache
from math import gcd, lcm
from typing import Any

from .record import record

LIMIT = 1 << 48
Rational = int | Fraction


class LengthError(Exception):
    """A length that has no value: `expression` is the part that fails, `reason` says why."""

    def __init__(self, expression: str, reason: str) -> None:
        super().__init__(f"{expression} {reason}")
        self.expression, self.reason = expression, reason


@record
class Symbol:
    """A size, or the number of rows of an axis. Two symbols of one name differ by `key`."""

    name: str
    key: Hashable = None

    @cached_property
    def order(self) -> str:
        # Only has to be one total order within a run; an object's hash is its identity there.
        if self.key is None:
            return self.name
        return f"{self.name} {self.key!r}" if isinstance(self.key, str | int) else f"{self.name} {hash(self.key):x}"

    @property
    def symbols(self) -> frozenset[Symbol]:
        return frozenset((self,))


@record
class Floor:
    """`numerator // denominator`, reduced."""

    numerator: Length
    denominator: Length

    @cached_property
    def order(self) -> str:
        return f"~{self.numerator.order}//{self.denominator.order}"

    @property
    def symbols(self) -> frozenset[Symbol]:
        return self.numerator.symbols | self.denominator.symbols


@record
class Sum:
    """A sum that something is divided by exactly; occurs with negative powers only."""

    polynomial: Length

    @cached_property
    def order(self) -> str:
        return f"~~{self.polynomial.order}"

    @property
    def symbols(self) -> frozenset[Symbol]:
        return self.polynomial.symbols


Atom = Symbol | Floor | Sum
Monomial = tuple[tuple[Atom, int], ...]  # sorted by atom, no power 0
UNIT: Monomial = ()


class Length:
    """An immutable normal form. Compare with `==`, print with `str`, ask a number with `value`."""

    __slots__ = ("__dict__", "terms")

    terms: tuple[tuple[Monomial, Rational], ...]  # highest first, no coefficient 0

    def __init__(self, terms: Mapping[Monomial, Rational]) -> None:
        """For this module: use `number`, `symbol` and the operators."""
        items = terms.items() if len(terms) < 2 else sorted(terms.items(), key=lambda item: _rank(item[0]))
        self.terms = tuple((m, _whole(c)) for m, c in items if c)

    @staticmethod
    def number(n: int) -> Length:
        return Length({UNIT: n})

    @staticmethod
    def symbol(name: str, key: Hashable = None) -> Length:
        return Length({((Symbol(name, key), 1),): 1})

    def __add__(self, other: Length | int) -> Length:
        terms = dict(self.terms)
        for monomial, coefficient in _length(other).terms:
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return Length(terms)._cancelled()

    def __neg__(self) -> Length:
        return self._scaled(UNIT, -1)

    def __sub__(self, other: Length | int) -> Length:
        return self + -_length(other)

    def __mul__(self, other: Length | int) -> Length:
        terms: dict[Monomial, Rational] = {}
        right = _length(other).terms
        for m1, c1 in self.terms:
            for m2, c2 in right:
                product = _times(m1, m2)
                terms[product] = terms.get(product, 0) + c1 * c2
        return Length(terms)._cancelled()

    def __pow__(self, exponent: int) -> Length:
        if exponent < 0:
            return ONE.divided_exactly(self**-exponent)
        return self * self ** (exponent - 1) if exponent else ONE

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: int) -> Length:
        return _length(other) - self

    def divided_exactly(self, other: Length | int) -> Length:
        """`self / other`, claimed to be whole. A sum as divisor cancels where it divides all that stands over it."""
        other = _length(other)
        if not other.terms:
            raise LengthError(f"{self} / 0", "divides by zero")
        if len(other.terms) == 1:
            monomial, coefficient = other.terms[0]
            return self._scaled(_power(monomial, -1), Fraction(1) / coefficient)._cancelled()
        # Sums are compared without their common factor, so that (a + b) and (2*a + 2*b) are one atom.
        content, monomial = other._content()
        primitive = other._scaled(_power(monomial, -1), Fraction(1) / content)
        over = self._scaled(_power(monomial, -1), Fraction(1) / content)
        return over._scaled(((Sum(primitive), -1),), 1)._cancelled()

    def __floordiv__(self, other: Length | int) -> Length:
        return _floor(self, _length(other))

    def ceil_divided(self, other: Length | int) -> Length:
        other = _length(other)
        return _floor(self + other - 1, other)

    def __mod__(self, other: Length | int) -> Length:
        return self - _length(other) * (self // other)

    # -- questions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Length) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    @property
    def as_number(self) -> int | None:
        """The number, when it is the same for all symbols (and whole)."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and self.terms[0][0] == UNIT and isinstance(self.terms[0][1], int):
            return self.terms[0][1]
        return None

    @cached_property
    def symbols(self) -> frozenset[Symbol]:
        return frozenset(symbol for monomial, _ in self.terms for atom, _ in monomial for symbol in atom.symbols)

    def value(self, env: Mapping[Any, int]) -> int:
        """The number for these symbols (looked up by key, then by name), or LengthError."""
        number = self._evaluate(env)
        if number < 0:
            raise LengthError(str(self), f"is {number}, below zero")
        if number > LIMIT:
            raise LengthError(str(self), f"is {number}, above 2^48")
        return number

    def _evaluate(self, env: Mapping[Any, int]) -> int:
        total: Rational = 0
        for monomial, coefficient in self.terms:
            over = 1
            for atom, power in monomial:
                number = _atom_value(atom, env)
                if power > 0:
                    coefficient *= number**power
                elif number == 0:
                    raise LengthError(str(self), "divides by zero")
                else:
                    over *= number**-power
            total += coefficient if over == 1 else Fraction(coefficient) / over
        whole = _whole(total)
        if isinstance(whole, int):
            return whole
        # Name the smallest part that is not whole by itself: `dim / heads`, not all that was built on it.
        for part in _by_denominator(self):
            if len(part.terms) < len(self.terms):
                part._evaluate(env)
        raise LengthError(str(self), f"does not divide: it is {whole}")

    @cached_property
    def order(self) -> str:
        return "+".join(f"{c}" + "".join(f"*{a.order}^{p}" for a, p in m) for m, c in self.terms)

    def __str__(self) -> str:
        return _print(self)

    def __repr__(self) -> str:
        return f"Length({self})"

    # -- inner

    def _scaled(self, monomial: Monomial, factor: Rational) -> Length:
        return Length({_times(m, monomial): c * factor for m, c in self.terms})

    def _content(self) -> tuple[Rational, Monomial]:
        """What all terms have in common: a coefficient with the sign of the first term, and a monomial."""
        numerators = gcd(*(c.numerator for _, c in self.terms))
        denominators = lcm(*(c.denominator for _, c in self.terms))
        sign = -1 if self.terms[0][1] < 0 else 1
        return _whole(Fraction(sign * numerators, denominators)), _common(m for m, _ in self.terms)

    def _cancelled(self) -> Length:
        """Terms over a sum, without it where the sum divides them."""
        sums = {atom: power for m, _ in self.terms for atom, power in m if isinstance(atom, Sum)}
        for atom in sums:
            deepest = min(power for m, _ in self.terms for a, power in m if a == atom)
            group = Length({_without(m, atom): c for m, c in self.terms if (atom, deepest) in m})
            lift = _power(_common((*(m for m, _ in group.terms), UNIT)), -1)
            quotient, rest = _divide(group._scaled(lift, 1), atom.polynomial, whole=False)
            if not rest.terms:
                others = Length({m: c for m, c in self.terms if (atom, deepest) not in m})
                over = UNIT if deepest == -1 else ((atom, deepest + 1),)
                return others + quotient._scaled(_times(_power(lift, -1), over), 1)
        return self


# -- monomials and coefficients


def _rank(monomial: Monomial) -> tuple[int, list[str], list[str]]:
    """Graded lexicographic, highest first; a monomial order where powers are positive, which `_divide` needs to end."""
    up = [atom.order for atom, power in monomial for _ in range(power)]
    down = [atom.order for atom, power in monomial for _ in range(-power)]
    return len(down) - len(up), up, down


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(((a, p) for a, p in powers.items() if p), key=lambda item: item[0].order))


def _power(monomial: Monomial, exponent: int) -> Monomial:
    return tuple((atom, power * exponent) for atom, power in monomial)


def _without(monomial: Monomial, atom: Atom) -> Monomial:
    return tuple((a, p) for a, p in monomial if a != atom)


def _common(monomials: Iterable[Monomial]) -> Monomial:
    """The largest monomial that divides all of them; powers may be negative."""
    powers: dict[Atom, int] | None = None
    for monomial in monomials:
        here = dict(monomial)
        powers = {a: min(powers.get(a, 0), here.get(a, 0)) for a in {**powers, **here}} if powers is not None else here
    return tuple(sorted(((a, p) for a, p in (powers or {}).items() if p), key=lambda item: item[0].order))


def _whole(number: Rational) -> Rational:
    """An int where it is one, so that equal numbers print and hash alike and arithmetic stays fast."""
    return number.numerator if isinstance(number, Fraction) and number.denominator == 1 else number


def _length(value: Length | int) -> Length:
    return value if isinstance(value, Length) else Length({UNIT: value})


def _atom_value(atom: Atom, env: Mapping[Any, int]) -> int:
    match atom:
        case Symbol(name, key):
            if key is not None and key in env:
                return env[key]
            if name in env:
                return env[name]
            raise LengthError(name, "has no value")
        case Floor(numerator, denominator):
            by = denominator._evaluate(env)
            if by < 1:
                text = str(Length({((atom, 1),): 1}))
                raise LengthError(text, "divides by zero" if by == 0 else f"divides by {by}")
            return numerator._evaluate(env) // by
        case Sum(polynomial):
            return polynomial._evaluate(env)


# -- division


def _divide(left: Length, right: Length, whole: bool) -> tuple[Length, Length]:
    """Quotient and remainder of polynomials with positive powers; `whole`: the quotient has whole coefficients."""
    head, by = right.terms[0]
    work = dict(left.terms)
    quotient: dict[Monomial, Rational] = {}
    inverse = _power(head, -1)
    skipped: set[Monomial] = set()
    while True:
        candidates = [m for m, c in work.items() if c and m not in skipped]
        if not candidates:
            return Length(quotient), Length(work)
        top = min(candidates, key=_rank)
        factor = _times(top, inverse)
        amount = work[top] // by if whole else _whole(Fraction(work[top]) / by)
        skipped.add(top)
        if amount and all(power > 0 for _, power in factor):
            quotient[factor] = amount
            for m, c in right.terms:
                m = _times(m, factor)
                work[m] = work.get(m, 0) - amount * c


@lru_cache(maxsize=1024)
def _floor(numerator: Length, denominator: Length) -> Length:
    """The normal form of `numerator // denominator`."""
    if not denominator.terms:
        raise LengthError(f"{numerator} // 0", "divides by zero")
    if denominator.as_number == 1:
        return numerator  # a length is whole, also where an exact division claims it
    top, bottom = _cleared(numerator, denominator)
    quotient, rest = _divide(top, bottom, whole=True)
    if not rest.terms:
        return quotient
    if rest.as_number == -1:
        return quotient - 1
    # g*p + c over g*n is p + c // g over n: what is left of c cannot reach the next multiple of g.
    constant = dict(rest.terms).get(UNIT, 0)
    varying = [(m, c) for m, c in rest.terms if m != UNIT]
    if not varying and bottom.as_number is not None:
        return quotient
    if varying:
        both = [*varying, *bottom.terms]
        factor = gcd(*(c.numerator for _, c in both))
        common = _common(m for m, _ in both) if constant in (0, -1) else UNIT
        if factor > 1 or common:
            down = _power(common, -1)
            reduced = Length(dict(varying))._scaled(down, Fraction(1, factor)) + Length({UNIT: constant // factor})
            return quotient + _floor(reduced, bottom._scaled(down, Fraction(1, factor)))
    # (a // b + r) // n is (a + r*b) // (b*n).
    floors = [m[0][0] for m, c in rest.terms if c == 1 and len(m) == 1 and m[0][1] == 1 and isinstance(m[0][0], Floor)]
    if len(floors) == 1 and isinstance(inner := floors[0], Floor):
        others = rest - Length({((inner, 1),): 1})
        return quotient + _floor(inner.numerator + others * inner.denominator, bottom * inner.denominator)
    return quotient + Length({((Floor(rest, bottom), 1),): 1})


def _cleared(numerator: Length, denominator: Length) -> tuple[Length, Length]:
    """The same quotient with whole coefficients and positive powers on both sides."""
    both = (*numerator.terms, *denominator.terms)
    if all(isinstance(c, int) and all(p > 0 for _, p in m) for m, c in both):
        return numerator, denominator
    factor = lcm(*(c.denominator for _, c in both))
    lift = UNIT
    for atom, power in _common((*(m for m, _ in both), UNIT)):
        if isinstance(atom, Sum):
            numerator = numerator * atom.polynomial**-power
            denominator = denominator * atom.polynomial**-power
        else:
            lift = _times(lift, ((atom, -power),))
    return numerator._scaled(lift, factor), denominator._scaled(lift, factor)


# -- printing


def _by_denominator(length: Length) -> list[Length]:
    """The length as a sum of parts, each of one denominator."""
    parts: dict[tuple[Monomial, int], dict[Monomial, Rational]] = {}
    for m, c in length.terms:
        under = tuple((a, -p) for a, p in m if p < 0)
        parts.setdefault((under, c.denominator), {})[m] = c
    return [Length(part) for part in parts.values()]


def _print(length: Length) -> str:
    if not length.terms:
        return "0"
    # `a - b * (a // b)` is written `a mod b`.
    for m, _ in length.terms:
        if m and isinstance(floor := m[-1][0], Floor):
            remainder = floor.numerator - floor.denominator * Length({((floor, 1),): 1})
            rest = length - remainder
            if len(rest.terms) < len(length.terms):
                text = f"{_operand(floor.numerator)} mod {_operand(floor.denominator)}"
                return text if not rest.terms else _join([(text, True), *_signed(rest)])
    return _join(_signed(length))


def _join(parts: list[tuple[str, bool]]) -> str:
    """Terms with their signs; if any is added, such a one goes first."""
    opening = next((part for part in parts if part[1]), parts[0])
    parts = [opening, *(part for part in parts if part is not opening)]
    text = ("" if parts[0][1] else "-") + parts[0][0]
    return text + "".join(f" {'+' if plus else '-'} {part}" for part, plus in parts[1:])


def _signed(length: Length) -> list[tuple[str, bool]]:
    # A floor whose numerator lacks one is a ceiling less one: the ones it takes go to the constant.
    taken = 0
    for m, c in length.terms:
        if len(m) == 1 and m[0][1] == 1 and isinstance(m[0][0], Floor) and _is_symbolic_ceiling(m[0][0]):
            taken += c
    shown = dict(length.terms)
    shown[UNIT] = shown.get(UNIT, 0) - taken
    result: list[tuple[str, bool]] = []
    for part in _by_denominator(Length(shown)):
        m, c = part.terms[0]
        under = tuple((a, -p) for a, p in m if p < 0)
        by = c.denominator
        above = part._scaled(under, by)
        if under == UNIT and by == 1:
            result += [(_term(m, abs(c)), c > 0) for m, c in above.terms]
            continue
        plus = above.terms[0][1] > 0
        above = above if plus else -above
        top = _term(*above.terms[0]) if len(above.terms) == 1 else f"({above})"
        bottom = " * ".join(factors := _factors(under, by))
        result.append((f"{top} / {bottom if len(factors) == 1 else f'({bottom})'}", plus))
    return result


def _factors(monomial: Monomial, coefficient: Rational) -> list[str]:
    factors = [] if coefficient == 1 and monomial else [str(coefficient)]
    for atom, power in monomial:
        text = _atom_text(atom, ceiling=len(monomial) == 1 and power == 1)
        factors.append(text if power == 1 else f"{text}^{power}")
    return factors


def _term(monomial: Monomial, coefficient: Rational) -> str:
    if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1:
        return _atom_text(monomial[0][0], alone=True, ceiling=True)
    return " * ".join(_factors(monomial, coefficient))


def _is_symbolic_ceiling(floor: Floor) -> bool:
    return floor.denominator.as_number is None and dict(floor.numerator.terms).get(UNIT, 0) == -1


def _atom_text(atom: Atom, alone: bool = False, ceiling: bool = False) -> str:
    """`alone`: not a factor. `ceiling`: `_signed` took a one from the constant for it."""
    match atom:
        case Symbol(name):
            return name
        case Sum(polynomial):
            return f"({polynomial})"
        case Floor(numerator, denominator):
            number = denominator.as_number
            constant = int(dict(numerator.terms).get(UNIT, 0))
            if number is not None and constant == number - 1:
                return f"ceil({_operand(numerator - constant)} / {number})"
            if ceiling and _is_symbolic_ceiling(atom):
                return f"ceil({_operand(numerator + 1)} / {_operand(denominator)})"
            text = f"{_operand(numerator)} // {_operand(denominator)}"
            return text if alone else f"({text})"


def _operand(length: Length) -> str:
    """As an operand of a division: in parentheses unless it is one word."""
    text = str(length)
    return text if re.fullmatch(r"\w+|ceil\([^(]*", text) else f"({text})"


ONE = Length.number(1)
