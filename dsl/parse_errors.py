"""Words for what the parser cannot read: from a place in the tokens and what could have stood there to a mistake."""

from __future__ import annotations

from .diagnostics import SpecError
from .errors.syntax import (
    BadIndentation,
    MalformedNumber,
    NotADeclaration,
    ReservedWord,
    UnclosedBracket,
    UnexpectedText,
)
from .lexer import DECLARATIONS, DEDENT, ERROR, INDENT, NEWLINE, RESERVED, Tokens
from .source import Span
from .suggest import suggest
from .tables import END, load_tables

# What may always go on after a complete expression or name: listed only when nothing else may come.
_GOES_ON = frozenset({
    "OR", "AND", "MOD", "EQUAL", "NOT_EQUAL", "LESS", "AT_MOST", "GREATER", "AT_LEAST", "PLUS", "MINUS", "STAR",
    "SLASH", "TWO_SLASHES", "CARET", "PIPE", "DOT", "OPEN_ROUND", "OPEN_SQUARE", "AS", "WHERE", "IN", "ONLY", "DOTS",
    "ARROW", "SEND", "WHEN", "TRAINS", "TWO_STARS", "ELIF", "ELSE",
})  # fmt: skip
_EXPRESSION = frozenset({"NAME", "NUMBER", "STRING", "OPEN_ROUND", "OPEN_SQUARE", "MINUS", "NOT"})
_PATTERN = frozenset({"NAME", "NUMBER", "STAR", "TWO_STARS", "PRESET_NAME"})
_KINDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string",
    "DOCSTRING": "a docstring",
    "PRESET_NAME": "a name",
    NEWLINE: "the end of the line",
    INDENT: "indented lines",
    DEDENT: "the end of the body",
    END: "the end of the declaration",
}
_OTHER_LANGUAGES = {
    "def": "block", "class": "block", "fn": "block", "func": "block", "function": "block", "module": "model",
    "import": "use", "from": "use", "dim": "size", "const": "size", "let": "size",
    "optimize": "optimise", "optimizer": "optimise",
    "loss": "objective", "weight": "shared", "param": "shared", "network": "model", "layer": "block",
}  # fmt: skip


def explain(tokens: Tokens, start: int, end: int, index: int, accepted: frozenset[str]) -> SpecError:
    """Why token `index`, of the item [start, end), cannot stand where `accepted` may."""
    # An unclosed bracket swallows the lines below it, so it is the cause of whatever looks wrong after it.
    for place, mistake in tokens.mistakes.items():
        if isinstance(mistake, UnclosedBracket) and index <= place < end and mistake.at.start < tokens.starts[index]:
            noticed = tokens.span(index) if place != index else None
            return UnclosedBracket(mistake.at, mistake.bracket, noticed)
    if index >= end:
        index = end
    elif tokens.kinds[index] == ERROR:
        return tokens.mistakes[index]
    kind = tokens.kinds[index] if index < end else END
    if index == start or (index == start + 1 and tokens.kinds[start] in (INDENT, DEDENT)):
        return _bad_start(tokens, index, kind)
    at, found = _found(tokens, index, kind)
    indentation = _indentation(tokens, index, kind, accepted, at)
    if indentation:
        return indentation
    text = tokens.text(index) if index < end else ""
    if text in RESERVED and "NAME" in accepted and _wants_name(tokens, index, accepted):
        return ReservedWord(at, text)
    if kind == "PRESET_NAME":
        return MalformedNumber(at, text, "neither a number nor a name: names start with a letter")
    after = _after(tokens, index, start)
    help = _help(tokens, index, kind, accepted) or _habit(tokens, start, index, kind, accepted)
    return UnexpectedText(at, found, _wanted(accepted), after, _within(tokens, start, index), help)


def _wants_name(tokens: Tokens, index: int, accepted: frozenset[str]) -> bool:
    """Whether a name is wanted, and not any expression."""
    named = tokens.kinds[index + 1] == "ASSIGN"
    return named or "RETURN" in accepted or not _EXPRESSION - {"NOT"} <= accepted


def late_docstring(at: Span) -> SpecError:
    return UnexpectedText(at, "a docstring", "a declaration", help="a docstring stands once, at the head of the file")


def _bad_start(tokens: Tokens, index: int, kind: str) -> SpecError:
    at = tokens.span(index)
    if kind == INDENT:
        if tokens.kinds[index + 1] == ERROR:
            return tokens.mistakes[index + 1]
        line = tokens.starts[index + 1]
        what = "this line is indented, and belongs to nothing above it"
        return BadIndentation(
            Span(tokens.source, line, tokens.ends[index + 1]), what, "declarations start at the left edge"
        )
    text = tokens.text(index)
    if not text.isidentifier():
        return NotADeclaration(at, f"`{_clip(text)}`", None, False)
    following = tokens.kinds[index + 1]
    is_statement = text in _STATEMENTS or following in ("ASSIGN", "COMMA", "PIPE", "OPEN_SQUARE", "SEND", "DOT")
    near = None if is_statement else _OTHER_LANGUAGES.get(text) or suggest(text, DECLARATIONS)
    return NotADeclaration(at, f"`{text}`", near, is_statement)


_STATEMENTS = frozenset({"return", "for", "if", "elif", "else", "segment", "routed", "match", "param", "input", "on"})


def _found(tokens: Tokens, index: int, kind: str) -> tuple[Span, str]:
    """The place to point at, and words for what stands there."""
    if kind in (NEWLINE, INDENT, DEDENT, END):
        # Point just behind the last thing that was read.
        last = index - 1
        while tokens.kinds[last] in (NEWLINE, INDENT, DEDENT) and last > 0:
            last -= 1
        edge = tokens.ends[last]
        words = "the end of the line" if kind == NEWLINE else "the end of the body"
        if kind == INDENT:
            return Span(tokens.source, tokens.starts[index], tokens.ends[index + 1]), "an indented line"
        return Span(tokens.source, edge, edge), words
    text = tokens.text(index)
    return tokens.span(index), f"`{_clip(text)}`"


def _indentation(tokens: Tokens, index: int, kind: str, accepted: frozenset[str], at: Span) -> SpecError | None:
    if kind == INDENT:
        if tokens.kinds[index + 1] == ERROR:
            return tokens.mistakes[index + 1]
        what = "this line is indented more than the line above it, which does not end in `:`"
        return BadIndentation(at, what, "indent the lines of one body alike")
    if accepted - {END, NEWLINE} == {INDENT}:
        last = index - 2
        return BadIndentation(
            tokens.span(max(last, 0)), "after this `:` the body is missing", "write it on the next lines, indented"
        )
    return None


def _after(tokens: Tokens, index: int, start: int) -> str | None:
    before = index - 1
    if before < start or tokens.kinds[before] in (NEWLINE, INDENT, DEDENT, ERROR):
        return None
    return f"`{_clip(tokens.text(before))}`"


def _within(tokens: Tokens, start: int, index: int) -> Span | None:
    """The innermost bracket open here, if it was opened on a line above: then the reader may not see it."""
    opened = []
    for place in range(start, min(index, len(tokens.kinds))):
        if tokens.kinds[place] in ("OPEN_ROUND", "OPEN_SQUARE"):
            opened.append(place)
        elif tokens.kinds[place] in ("CLOSE_ROUND", "CLOSE_SQUARE") and opened:
            opened.pop()
    if opened and tokens.span(opened[-1]).line != tokens.span(index).line:
        return tokens.span(opened[-1])
    return None


def _wanted(accepted: frozenset[str]) -> str:
    """What may come, in words: the shortest list that says it."""
    texts = load_tables().texts
    kinds = set(accepted)
    words: list[str] = []
    if kinds >= _EXPRESSION - {"NOT"}:
        kinds -= _EXPRESSION | {"WHERE"}
        statement = "RETURN" in kinds
        words.append("a statement" if statement else "an expression")
        if statement:
            kinds = set()
    elif kinds >= _PATTERN:
        kinds -= _PATTERN
        words.append("a pattern, such as `**.linear.weight`")
    essential = kinds - _GOES_ON
    if essential or words:
        kinds = essential
    if END in kinds:
        kinds.discard(END)
        words.append("the end of the declaration")
    marks = sorted(kinds & texts.keys(), key=lambda kind: (_ORDER.get(kind, 9), texts[kind]))
    words += sorted({_KINDS[kind] for kind in kinds if kind in _KINDS})
    words += [f"`{texts[kind]}`" for kind in marks]
    if len(words) > 5:
        words = words[:5] + ["..."]
    if len(words) <= 1:
        return words[0] if words else "nothing more"
    return ", ".join(words[:-1]) + " or " + words[-1]


_ORDER = {"COLON": 0, "ASSIGN": 1, "COMMA": 2, "CLOSE_ROUND": 3, "CLOSE_SQUARE": 4}


def _help(tokens: Tokens, index: int, kind: str, accepted: frozenset[str]) -> str | None:
    """What was probably meant."""
    previous = tokens.kinds[index - 1]
    text = tokens.text(index) if kind != END else ""
    if kind == "ASSIGN" and "EQUAL" in accepted:
        return "equality is `==`"
    if kind == "ASSIGN" and previous in ("PLUS", "MINUS", "STAR", "SLASH", "CARET", "TWO_SLASHES"):
        return f"write `x = x {tokens.text(index - 1)} ...`"
    if kind in ("STAR", "TWO_STARS") and ("CARET" in accepted or previous == "STAR"):
        return "a power is `^`"
    if kind == "ARROW":
        return "a mapping stands among the arguments of a call"
    if kind == "SEND" and "LESS" in accepted:
        return "leave a space in `< -`"
    if kind == "GREATER" and previous == "ASSIGN":
        return "a mapping is `->`, a comparison `>=`"
    if text == "if" and previous == "ELSE":
        return "write `elif`"
    if kind not in (NEWLINE, END, INDENT, DEDENT) and NEWLINE in accepted and previous == "COLON":
        return "the body stands on the next lines, indented"
    if previous == "COLON" and accepted == {NEWLINE}:
        return "the body stands on the next lines, indented"
    if text in ("if", "else") and ("CARET" in accepted or accepted >= _EXPRESSION):
        return "choose between values with `where(condition, a, b)`"
    if kind == "COMMA" and NEWLINE in accepted and "ASSIGN" not in accepted and previous != "COMMA":
        return "put several values in round brackets"
    if kind == "COLON" and "ASSIGN" in accepted:
        return "a value is given by `=`"
    if kind == "COLON" and (previous == "OPEN_SQUARE" or {"COMMA", "CLOSE_SQUARE"} <= accepted):
        return "there are no slices: rows are chosen by `take`, entries by `x[index]` or `split`"
    if kind == "ASSIGN" and "COLON" in accepted and previous == "NAME" and tokens.kinds[index - 2] == "OPTION":
        return "an option says what it is: `option name: real = 0.1`"
    return None


def _habit(tokens: Tokens, start: int, index: int, kind: str, accepted: frozenset[str]) -> str | None:
    """What is written so in another language, or in another place."""
    previous = tokens.kinds[index - 1]
    word = tokens.text(index - 1) if previous == "NAME" else ""
    starts_line = index - 2 < start or tokens.kinds[index - 2] in (NEWLINE, INDENT, DEDENT)
    if word and starts_line and kind in ("NAME", "PRESET_NAME", "STRING", "OPEN_ROUND"):
        if word in DECLARATIONS:
            return f"`{word}` starts a declaration, which stands at the left edge"
        if word == "while":
            return "loops run over static ranges: `for i in 0 .. n:`"
    if kind == "DOCSTRING":
        return "a docstring stands once, at the head of the file; a comment starts with `#`"
    if kind == "PIPE" and _starts_line(tokens, index):
        return "a pipe goes on in a line that is indented more"
    if kind == NEWLINE and previous in _OPERATORS:
        return "an expression goes on in the next line inside brackets"
    if (kind == "DOT" or previous == "DOT") and tokens.kinds[index + (kind == "DOT")] in ("NUMBER", NEWLINE):
        return "digits stand on both sides of a point: `0.5`" if _is_number(tokens, index, kind) else None
    if kind == "NAME" and NEWLINE in accepted and "TWO_SLASHES" in _line_before(tokens, index):
        return "a comment starts with `#`; `//` divides and rounds down"
    if (kind, previous) in (("COMMA", "DOTS"), ("DOTS", "COMMA")) and "CLOSE_SQUARE" in accepted:
        return "`[..]` stands for all axes; one of them is a parameter: `width: axis = last_axis(x)`"
    if kind == "STRING" and tokens.kinds[start] == "USE" and index == start + 1:
        return f"without quotes and ending: `use {tokens.text(index)[1:-1].removesuffix('.weft')}`"
    return None


_OPERATORS = frozenset({
    "OR", "AND", "NOT", "MOD", "EQUAL", "NOT_EQUAL", "LESS", "AT_MOST", "GREATER", "AT_LEAST", "PLUS", "MINUS", "STAR",
    "SLASH", "TWO_SLASHES", "CARET", "ASSIGN",
})  # fmt: skip


def _starts_line(tokens: Tokens, index: int) -> bool:
    return tokens.kinds[index - 1] in (NEWLINE, INDENT, DEDENT)


def _is_number(tokens: Tokens, index: int, kind: str) -> bool:
    """Whether a point that stands alone belongs to a number: `.5` or `5.`."""
    point = index if kind == "DOT" else index - 1
    return "NUMBER" in (tokens.kinds[point + 1], tokens.kinds[point - 1])


def _line_before(tokens: Tokens, index: int) -> list[str]:
    """The kinds of the tokens before one on its line."""
    first = index
    while first > 0 and tokens.kinds[first - 1] not in (NEWLINE, INDENT, DEDENT):
        first -= 1
    return tokens.kinds[first:index]


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 30 else text[:27] + "..."
