"""Records are frozen dataclasses in everything but when their methods are made."""

from __future__ import annotations

import dataclasses

import pytest

from weft.dsl.record import record


@record
class Point:
    x: int
    y: int = 2
    tags: list[str] = dataclasses.field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        assert self.x >= 0


@record
class Named(Point):
    name: str = "p"


@record(eq=False)
class Thing:
    value: object


class Plain(Point):
    """An ordinary subclass."""


def test_fields_defaults_and_keywords() -> None:
    assert Point(1) == Point(x=1, y=2)
    assert Point(1).tags == []
    assert Point(1).tags is not Point(1).tags
    assert [one.name for one in dataclasses.fields(Named)] == ["x", "y", "tags", "name"]
    assert Named(1, name="q").name == "q"
    assert Plain(3).x == 3
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(1, z=3)  # type: ignore[call-arg]


def test_the_post_init_runs() -> None:
    with pytest.raises(AssertionError):
        Point(-1)


def test_equality_and_hash() -> None:
    assert Point(1, 2, ["a"]) == Point(1, 2, ["b"])
    assert Point(1) != Point(2)
    assert Point(1) != Named(1)
    assert hash(Point(1)) == hash(Point(1))
    assert len({Point(1), Point(1), Point(2)}) == 2
    assert Thing(1) != Thing(1)
    assert hash(Thing([])) != 0


def test_frozen() -> None:
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point.y  # type: ignore[misc]


def test_replace_match_and_repr() -> None:
    assert dataclasses.replace(Point(1), y=5) == Point(1, 5)
    match Named(1, 2, name="n"):
        case Named(x, y, _, name):
            assert (x, y, name) == (1, 2, "n")
    assert repr(Thing(1)) == "Thing(value=1)"


def test_methods_of_the_class_win() -> None:
    @record
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert repr(Own(1)) == "own"
    assert Own(1) == Own(2)
    assert hash(Own(1)) == 7
