"""Frozen dataclasses whose methods are compiled when they are first called.

`dataclass(frozen=True)` compiles five functions per class when a module is imported: 0.3 ms each class, and with 250
classes a fifth of the time that `weft check` may take, most of it for classes of which no instance is ever made (an
error class each). A record is a dataclass in every other way: `fields`, `replace`, `match` and type checkers see one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
def record(cls: type[T], /) -> type[T]: ...
@overload
def record(*, eq: bool = True, repr: bool = True) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True, eq_default=True, field_specifiers=(field,))
def record(cls: Any = None, /, *, eq: bool = True, repr: bool = True) -> Any:
    """`@record` is `@dataclass(frozen=True)`, `@record(eq=False)` compares by identity."""

    def make(made: Any) -> Any:
        if made.__doc__ is None:
            # dataclass would write the signature there, which means finding it out.
            made.__doc__ = ""
        own = dict(made.__dict__)
        # Without methods to write, dataclass only collects the fields.
        made = dataclass(init=False, repr=False, eq=False)(made)
        methods = {"__init__": _init, "__setattr__": _refuse, "__delattr__": _refuse}
        if repr:
            methods["__repr__"] = _repr
        if eq:
            methods |= {"__eq__": _eq, "__hash__": _hash}
        for name, method in methods.items():
            # `__hash__` is None in a class that has its own `__eq__`.
            if own.get(name) is None:
                setattr(made, name, method)
        return made

    return make if cls is None else make(cls)


def _home(cls: type, method: str, stand_in: Callable[..., Any]) -> type:
    """The class whose stand-in was called: a subclass may be an ordinary class."""
    return next(base for base in cls.__mro__ if base.__dict__.get(method) is stand_in)


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    cls = _home(type(self), "__init__", _init)
    scope: dict[str, Any] = {"_set": object.__setattr__, "_MISSING": MISSING}
    parameters, body, keyword_only = [], [], []
    for one in fields(cls):
        name, value = one.name, one.name
        default = ""
        if one.default is not MISSING:
            scope[f"_default_{name}"] = one.default
            default = f"=_default_{name}"
        elif one.default_factory is not MISSING:
            scope[f"_make_{name}"] = one.default_factory
            default = "=_MISSING"
            value = f"_make_{name}() if {name} is _MISSING else {name}" if one.init else f"_make_{name}()"
        if one.init:
            (keyword_only if one.kw_only else parameters).append(name + default)
        elif default and one.default_factory is MISSING:
            value = f"_default_{name}"
        if one.init or default:
            body.append(f"_set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    listed = ["self", *parameters, *(["*", *keyword_only] if keyword_only else [])]
    # The text holds nothing but names of fields of our own classes.
    exec(f"def __init__({', '.join(listed)}):\n " + "\n ".join(body or ["pass"]), scope)  # noqa: S102
    made = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = made  # type: ignore[misc]
    made(self, *args, **kwargs)


def _compared(cls: type) -> list[Field[Any]]:
    return [one for one in fields(cls) if one.compare]


def _eq(self: Any, other: object) -> Any:
    cls = _home(type(self), "__eq__", _eq)
    names = [one.name for one in _compared(cls)]
    same = " and ".join(f"a.{name} == b.{name}" for name in names) or "True"
    made = _function(f"def __eq__(a, b): return ({same}) if a.__class__ is b.__class__ else NotImplemented")
    cls.__eq__ = made  # type: ignore[method-assign]
    return made(self, other)


def _hash(self: Any) -> int:
    cls = _home(type(self), "__hash__", _hash)
    names = [one.name for one in _compared(cls) if one.hash is not False]
    made = _function(f"def __hash__(a): return hash(({''.join(f'a.{name}, ' for name in names)}))")
    cls.__hash__ = made  # type: ignore[method-assign]
    return made(self)


def _function(text: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(text, scope)  # noqa: S102
    return next(value for name, value in scope.items() if name != "__builtins__")


def _repr(self: Any) -> str:
    shown = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({shown})"


def _refuse(self: Any, name: str, *value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")
