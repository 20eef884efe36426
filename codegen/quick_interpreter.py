"""Triton's interpreter without work that it repeats for nothing: the same results in three quarters of the time.

Each call of a function from a kernel looks through the whole language for what the interpreter has to replace, which
the launch around it has replaced already; each operation builds a table of types to look one up, and works out anew
what a block of its shape is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any


def quicken() -> None:
    """Mends the interpreter of this process, once. Versions of triton that are made otherwise are left as they are."""
    from triton import language
    from triton.runtime import interpreter

    if isinstance(interpreter._patch_lang, _PatchOnce) or not hasattr(interpreter, "_LangPatchScope"):
        return
    interpreter._patch_lang = _PatchOnce(interpreter._patch_lang)  # type: ignore[assignment]
    interpreter._get_np_dtype = _NumpyTypes(interpreter._get_np_dtype)
    language.core.block_type.__init__ = _remembered(language.core.block_type.__init__)


def _remembered(make: Callable[..., None]) -> Callable[..., None]:
    """`make`, which fills in a block's type, once for each element type and shape."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *shape)
        if not all(type(size) is int for size in key[1:]):  # a constant of a kernel is told apart by hand
            make(self, element_ty, shape)
            return
        found = known.get(key)
        if found is None:
            make(self, element_ty, shape)
            known[key] = {name: value for name, value in vars(self).items() if name != "element_ty"}
            return
        self.element_ty = element_ty
        self.__dict__.update(found)

    return init


class _NumpyTypes:
    """The numpy type that holds entries of a type of the language."""

    def __init__(self, find: Callable[[Any], Any]) -> None:
        self.find = find
        self.known: dict[str, Any] = {}

    def __call__(self, type: Any) -> Any:
        # Entries of a block are those of its element type; names tell types apart.
        name = (type.element_ty if type.is_block() else type).name
        if name not in self.known:
            self.known[name] = self.find(type)
        return self.known[name]


class _PatchOnce:
    """What replaces the language's functions by the interpreter's. A launch undoes what it did; functions that are
    called in one add to it what they are the first to see."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self.patch = patch
        self.seen: set[frozenset[int]] | None = None  # modules of the language, as functions see them; None: no launch

    def __call__(self, function: Any) -> Any:
        visible = _language_of(function)
        if self.seen is None:
            self.seen = {visible}
            return _Launch(self, self.patch(function))
        if visible in self.seen:
            return None
        self.seen.add(visible)
        return self.patch(function)


class _Launch:
    def __init__(self, owner: _PatchOnce, scope: Any) -> None:
        self.owner, self.scope = owner, scope

    def restore(self) -> None:
        self.owner.seen = None
        self.scope.restore()


@cache
def _language_of(function: Any) -> frozenset[int]:
    from triton import language

    modules = (value for value in function.__globals__.values() if inspect.ismodule(value))
    return frozenset(id(module) for module in modules if module in (language, language.core))
