"""E9xx: constructs that the language has and this version does not build."""

from __future__ import annotations

from ..diagnostics import Diagnostic, SpecError
from ..record import record


@record
class NotBuiltYet(SpecError, code="E901"):
    """The construct is part of the language and parses, but this version of Weft cannot compile it.

    Remove it, or keep the spec for a later version; `weft fmt` already handles it.

    Wrong:
        memory knowledge: units = 8, tokens = 128
    Right:
        size units = 8
    """

    what: str

    def describe(self) -> Diagnostic:
        return self.say(f"{self.what} is not built yet", "part of the language, but this version cannot compile it")
