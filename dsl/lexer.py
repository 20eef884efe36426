"""Text to tokens: words, marks, and the lines and indentation that are the structure of a spec.

A logical line ends with a `_NEWLINE` token; bodies lie between `_INDENT` and `_DEDENT`. A line goes on while a
bracket is open, after a comma when the next line is indented more, and when the next line is indented more and starts
with `|>`. Comments are put aside with their places. What cannot be read becomes an `ERROR` token with its mistake, so
that the parser reports it where it stands and goes on with the next item.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .diagnostics import Problems, SpecError
from .errors.syntax import (
    BadIndentation,
    BracketMismatch,
    HiddenCharacter,
    MalformedNumber,
    Tab,
    TooDeep,
    UnclosedBracket,
    UnknownCharacter,
    UnterminatedString,
)  # fmt: skip
from .source import Source, Span
from .syntax import Comment
from .tables import END, load_tables

NEWLINE, INDENT, DEDENT, ERROR = "_NEWLINE", "_INDENT", "_DEDENT", "ERROR"
MAX_BRACKETS = 100
MAX_DIGITS = 40
RESERVED = frozenset({"and", "or", "not", "mod", "in", "if", "elif", "else", "for", "return"})
DECLARATIONS = (
    "use", "size", "option", "axis", "enum", "shared", "mask", "block", "model", "objective", "init", "freeze",
    "optimise", "hook", "memory", "extern", "generate", "recipe", "weights",
)  # fmt: skip

# No escapes but these: a string is a foreign name or a file name.
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n", "\\t": "\t"}

_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]|\r(?!\n)"
)
_ITEM_LINE = re.compile(rf'(?:{"|".join(DECLARATIONS)})[ ]+["A-Za-z0-9_*]')
_NEXT_LINE = re.compile(r"(?:[ ]*(?:#[^\n]*|\r)?\n)*([ ]*)(\|>|[^\s#])?")
_NUMBER = re.compile(r"[0-9]+(?:_[0-9]+)*(?:\.[0-9]+(?:_[0-9]+)*)?(?:[eE][+-]?[0-9]+)?")
_SIZE_NAME = re.compile(r"[0-9]+[A-Za-z_][A-Za-z0-9_]*")

_ADVICE = {
    "%": "the remainder is `mod`",
    "&": "write `and`",
    "|": "write `or`; a pipe is `|>`",
    "!": "write `not`; unequal is `!=`",
    "'": 'strings have double quotes: `"..."`',
    "`": 'strings have double quotes: `"..."`',
    ";": "one statement per line",
    "{": "bodies are indented, and axes stand in `[` `]`",
    "}": "bodies are indented, and axes stand in `[` `]`",
    "\\": "a line goes on inside brackets",
    "@": "contract axes by name with `linear` or `dot`",
    "\u2212": "the minus sign is `-`",
    "\u2192": "write `->`",
    "\u00d7": "write `*`",
    "\u2264": "write `<=`",
    "\u2265": "write `>=`",
    "\u201c": 'strings have straight quotes: `"`',
    "\u201d": 'strings have straight quotes: `"`',
}


@dataclass(slots=True)
class Tokens:
    """The tokens of one file as parallel lists. `items` are the indices where a line starts at the left edge,
    `mistakes` says why the token at an index is an `ERROR`."""

    source: Source
    kinds: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    mistakes: dict[int, SpecError] = field(default_factory=dict)
    comments: list[Comment] = field(default_factory=list)
    broken: bool = False

    def span(self, index: int) -> Span:
        return Span(self.source, self.starts[index], self.ends[index])

    def text(self, index: int) -> str:
        return self.source.text[self.starts[index] : self.ends[index]]


def _master() -> re.Pattern[str]:
    marks = "|".join(re.escape(text) for text in sorted(load_tables().marks, key=len, reverse=True))
    return re.compile(
        r"(?P<space>[ ]+)"
        r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
        rf"|(?P<number>[0-9][A-Za-z0-9_]*(?:\.[0-9][A-Za-z0-9_]*)?(?:(?<=[eE])[+-][0-9]+)?)"
        rf"|(?P<mark>{marks})"
        r"|(?P<tab>\t+)"
        r"|(?P<newline>\r?\n)"
        r"|(?P<comment>#[^\r\n]*)"
        r'|(?P<docstring>"""[\s\S]*?""")'
        r'|(?P<string>"(?!"")(?:[^"\\\n]|\\["\\nt])*")'
        r"|(?P<other>[\s\S])"
    )


_PATTERNS: list[re.Pattern[str]] = []


def tokenize(source: Source, problems: Problems) -> Tokens:
    """The tokens of a file. Tabs and mistakes in comments go to `problems`, all others into the tokens."""
    return _Lexer(source, problems).run()


class _Lexer:
    """State of one run: the open brackets, the indentation, and whether the line is a continuation."""

    def __init__(self, source: Source, problems: Problems) -> None:
        self.source = source
        self.problems = problems
        self.tokens = Tokens(source)
        self.brackets: list[int] = []
        self.indents = [0]
        self.line_indent = 0
        self.dropped = 0
        self.tab_item = -1

    def run(self) -> Tokens:
        if not _PATTERNS:
            _PATTERNS.append(_master())
        scan = _PATTERNS[0].match
        tables = load_tables()
        words, marks = tables.words, tables.marks
        tokens, text = self.tokens, self.source.text
        kinds, starts, ends = tokens.kinds, tokens.starts, tokens.ends
        position = 1 if text.startswith("\ufeff") else 0
        line_start, column_zero = True, position
        length = len(text)
        while position < length:
            found = scan(text, position)
            assert found, "the last alternative matches anything"
            group, end = found.lastgroup, found.end()
            if group == "space":
                position = end
                continue
            if group == "newline":
                position = end
                if not line_start:
                    line_start = self._line_end(found.start(), end)
                column_zero = end
                continue
            if group == "tab":
                self._tab(position, end)
                position = end
                continue
            if group == "comment":
                self._comment(position, end, own_line=line_start or not text[column_zero:position].strip())
                position = end
                continue
            if line_start:
                line_start = False
                # A tab counts as four columns, so that the one mistake reported is the tab.
                self._line_start(position, position - column_zero + 3 * text.count("\t", column_zero, position))
            if group == "word":
                kinds.append(words.get(text[position:end], "NAME"))
                starts.append(position)
                ends.append(end)
            elif group == "mark":
                kind = marks[text[position:end]]
                if kind in _BRACKETS:
                    self._bracket(kind, position, end)
                else:
                    kinds.append(kind)
                    starts.append(position)
                    ends.append(end)
            else:
                end = self._rare(group or "", position, end)
            position = end
        if not line_start:
            if self.brackets:
                self._unclosed(length)
            self._add(NEWLINE, ends[-1], ends[-1])
        self._dedent_to(0, length)
        self._add(END, length, length)
        return tokens

    def _add(self, kind: str, start: int, end: int) -> None:
        self.tokens.kinds.append(kind)
        self.tokens.starts.append(start)
        self.tokens.ends.append(end)

    def _error(self, mistake: SpecError, start: int, end: int) -> None:
        self.tokens.mistakes[len(self.tokens.kinds)] = mistake
        self._add(ERROR, start, end)

    def _at(self, start: int, end: int) -> Span:
        return Span(self.source, start, end)

    def _line_start(self, position: int, column: int) -> None:
        if column == 0 or not self.tokens.kinds:
            self._dedent_to(0, position)
            self.tokens.items.append(len(self.tokens.kinds))
        if column > self.indents[-1]:
            self.indents.append(column)
            self._add(INDENT, position, position)
        elif column < self.indents[-1]:
            self._dedent_to(column, position)
            if column != self.indents[-1]:
                wanted = " or ".join(str(indent) for indent in (self.indents[-1], self.dropped))
                what = f"this line is indented by {column} spaces, the lines around it by {wanted}"
                self._error(BadIndentation(self._at(position - column, position), what), position, position)
                self.indents.append(column)
        self.line_indent = column

    def _dedent_to(self, column: int, position: int) -> None:
        while self.indents[-1] > column:
            self.dropped = self.indents.pop()
            self._add(DEDENT, position, position)

    def _line_end(self, position: int, after: int) -> bool:
        """At a line break: whether the logical line ends here."""
        text = self.source.text
        if self.brackets:
            if not _ITEM_LINE.match(text, after):
                return False
            self._unclosed(position)
        else:
            following = _NEXT_LINE.match(text, after)
            if (
                following
                and following[2]
                and len(following[1]) > self.line_indent
                and (self.tokens.kinds[-1] == "COMMA" or following[2] == "|>")
            ):
                return False
        self._add(NEWLINE, self.tokens.ends[-1], self.tokens.ends[-1])
        return True

    def _unclosed(self, position: int) -> None:
        start = self.brackets[-1]
        bracket = self.source.text[start]
        self._error(UnclosedBracket(self._at(start, start + 1), bracket), position, position)
        self.brackets.clear()

    def _bracket(self, kind: str, start: int, end: int) -> None:
        text = self.source.text
        if kind in ("OPEN_ROUND", "OPEN_SQUARE"):
            if len(self.brackets) == MAX_BRACKETS:
                self._error(TooDeep(self._at(start, end), MAX_BRACKETS), start, end)
            self.brackets.append(start)
        elif not self.brackets:
            self._error(BracketMismatch(self._at(start, end), text[start], None), start, end)
            return
        else:
            opening = self.brackets.pop()
            if text[opening] + text[start] not in ("()", "[]"):
                mistake = BracketMismatch(self._at(start, end), text[start], self._at(opening, opening + 1))
                self._error(mistake, start, end)
                return
        self._add(kind, start, end)

    def _tab(self, start: int, end: int) -> None:
        """Tabs are reported once per item: a file indented by tabs would fill the screen."""
        if self.tab_item != len(self.tokens.items):
            self.tab_item = len(self.tokens.items)
            self.tokens.broken = True
            self.problems.add(Tab(self._at(start, end)))

    def _comment(self, start: int, end: int, own_line: bool) -> None:
        text = self.source.text[start:end]
        hidden = _HIDDEN.search(text)
        if hidden:
            at = self._at(start + hidden.start(), start + hidden.end())
            self.tokens.broken = True
            self.problems.add(HiddenCharacter(at, ord(hidden[0])))
        self.tokens.comments.append(Comment(text.rstrip(), own_line, self._at(start, start + len(text.rstrip()))))

    def _rare(self, group: str, start: int, end: int) -> int:
        """Numbers, strings and what cannot be read. Returns where reading goes on."""
        text = self.source.text
        found = text[start:end]
        if group == "number":
            self._number(found, start, end)
        elif group in ("string", "docstring"):
            hidden = _HIDDEN.search(found)
            if hidden:
                at = self._at(start + hidden.start(), start + hidden.end())
                self._error(HiddenCharacter(at, ord(hidden[0])), start, end)
            else:
                self._add("STRING" if group == "string" else "DOCSTRING", start, end)
        elif _HIDDEN.match(found):
            self._error(HiddenCharacter(self._at(start, end), ord(found)), start, end)
        elif found == '"':
            end = self._open_string(start)
        else:
            self._error(self._unknown(found, start, end), start, end)
        return end

    def _number(self, found: str, start: int, end: int) -> None:
        reason = None
        if _NUMBER.fullmatch(found):
            if len(found) > MAX_DIGITS:
                reason = f"longer than {MAX_DIGITS} characters"
            elif "e" in found.lower() and float(found) == float("inf"):
                reason = "too large"
            else:
                self._add("NUMBER", start, end)
        elif _SIZE_NAME.fullmatch(found):
            self._add("PRESET_NAME", start, end)
        else:
            reason = "numbers look like `32`, `50_000`, `0.1`, `1e-6`"
        if reason:
            self._error(MalformedNumber(self._at(start, end), found, reason), start, end)

    def _open_string(self, start: int) -> int:
        text = self.source.text
        if text.startswith('"""', start):
            # Skip to what looks like a declaration: the text of the docstring is not code.
            self._error(UnterminatedString(self._at(start, start + 3), True), start, start + 3)
            rest = re.compile(rf"\n(?={_ITEM_LINE.pattern})").search(text, start)
            return rest.start() if rest else len(text)
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        escape = re.compile(r'"(?:[^"\\\n]|\\["\\nt])*(\\.)').match(text, start)
        if escape:
            at = self._at(escape.start(1), escape.end(1))
            advice = 'the escapes are `\\\\`, `\\"`, `\\n` and `\\t`'
            self._error(UnknownCharacter(at, f"`{escape[1]}` in a string", advice), start, end)
        else:
            self._error(UnterminatedString(self._at(start, end), False), start, end)
        return end

    def _unknown(self, found: str, start: int, end: int) -> SpecError:
        advice = _ADVICE.get(found)
        if advice is None and found.isspace():
            advice = "use a plain space"
        elif advice is None and found.isalnum():
            advice = "names are made of ASCII letters, digits and `_`"
        shown = f"`{found}`" if found.isprintable() and not found.isspace() else f"U+{ord(found):04X}"
        return UnknownCharacter(self._at(start, end), shown, advice)


_BRACKETS = frozenset({"OPEN_ROUND", "OPEN_SQUARE", "CLOSE_ROUND", "CLOSE_SQUARE"})
