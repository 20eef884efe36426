"""The one canonical form of a spec: `weft fmt`.

Works on tokens, not on the tree: tokens are printed as they were written and only what lies between them changes, so
the formatted text cannot mean anything else. Comments are kept where they stand; one in the middle of an expression
moves above the part it stands in. A line that is too long is broken at its pipes, at the commas of a list, or at
brackets (layout.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from .diagnostics import Problems
from .layout import STEP, Bracket, Element, cells, lay_out, table
from .lexer import DEDENT, INDENT, NEWLINE, Tokens, tokenize
from .parser import parse_tokens
from .source import Source
from .syntax import Comment
from .tables import END, load_tables


def format_text(source: Source) -> str:
    """The text in canonical form. A text with mistakes is returned as it is."""
    problems = Problems()
    tokens = tokenize(source, problems)
    file = parse_tokens(tokens, problems)
    if file.broken or problems:
        return source.text
    return _Formatter(tokens).text()


@dataclass(slots=True)
class _Line:
    """One logical line: its tokens, its level of indentation, and the column it had."""

    first: int
    last: int
    level: int
    column: int


@dataclass(slots=True)
class _Entry:
    """What is printed: a logical line or a comment of its own, with the blank lines that stood above it."""

    text: str
    level: int
    blank: bool
    line: _Line | None
    preset: _Preset | None = None


@dataclass(slots=True)
class _Preset:
    """A preset that stands on one line: `size tiny:` and its settings, and the comment behind them."""

    cells: tuple[str, ...]
    names: tuple[str, ...]
    comment: str


# Lines that are a list: too long, they are filled up to the margin and go on below.
_LISTS = frozenset({"SIZE", "ENUM", "USE", "FREEZE", "MEMORY", "TENSOR", "AXIS"})
_HEADS = frozenset({"BLOCK", "MODEL", "OBJECTIVE", "HOOK", "EXTERN", "GENERATE", "RECIPE", "MASK"})
_OPEN = frozenset({"OPEN_ROUND", "OPEN_SQUARE"})
_CLOSE = frozenset({"CLOSE_ROUND", "CLOSE_SQUARE"})
_OPERAND_END = _CLOSE | {"NAME", "NUMBER", "STRING", "PRESET_NAME", "COPY"}
_TIGHT_BEFORE = _CLOSE | {"COMMA", "DOT", "COLON", "CARET"}
_TIGHT_AFTER = _OPEN | {"DOT", "CARET"}


class _Formatter:
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.kinds = tokens.kinds
        self.source = tokens.source.text
        self.comments = tokens.comments
        self.next_comment = 0

    def text(self) -> str:
        lines = self._lines()
        entries: list[_Entry] = []
        columns = [0]
        end = 0
        for number, line in enumerate(lines):
            above = lines[number - 1].level if number else 0
            end = self._own_comments(entries, end, self.tokens.starts[line.first], line.level, above, columns)
            del columns[line.level :]
            columns += [line.column] * (line.level + 1 - len(columns))
            printed, stop, hoisted, preset = self._print(line)
            blank = self._blank_between(end, self.tokens.starts[line.first])
            for comment in hoisted:
                entries.append(_Entry(" " * STEP * line.level + comment, line.level, blank, None))
                blank = False
            entries.append(_Entry(printed, line.level, blank, line, preset))
            end = stop
        last = lines[-1].level if lines else 0
        self._own_comments(entries, end, len(self.source), 0, last, columns)
        _align_presets(entries)
        return self._join(entries)

    def _lines(self) -> list[_Line]:
        lines = []
        level, first = 0, None
        for index, kind in enumerate(self.kinds):
            if kind == INDENT:
                level += 1
            elif kind == DEDENT:
                level -= 1
            elif kind == NEWLINE:
                assert first is not None
                start = self.tokens.starts[first]
                column = start - (self.source.rfind("\n", 0, start) + 1)
                lines.append(_Line(first, index - 1, level, column))
                first = None
            elif kind != END and first is None:
                first = index
        return lines

    # ---- comments and blank lines between logical lines ----------------------------------------------

    def _own_comments(
        self, entries: list[_Entry], end: int, start: int, level: int, above: int, columns: list[int]
    ) -> int:
        """Entries for the comments in [end, start), between a line of level `above` and one of `level`. Returns where
        the last of them ends."""
        while self.next_comment < len(self.comments) and self.comments[self.next_comment].span.start < start:
            comment = self.comments[self.next_comment]
            self.next_comment += 1
            place = comment.span.start
            column = place - (self.source.rfind("\n", 0, place) + 1)
            own = level
            # Behind a body a comment belongs to the deepest level that it is indented for, and later ones no deeper.
            for deeper in range(level + 1, above + 1):
                if column >= columns[deeper]:
                    own = deeper
            above = max(own, level)
            text = " " * STEP * own + comment.text
            entries.append(_Entry(text, own, self._blank_between(end, place), None))
            end = comment.span.end
        return end

    def _blank_between(self, end: int, start: int) -> bool:
        return self.source.count("\n", end, start) > 1

    def _join(self, entries: list[_Entry]) -> str:
        out: list[str] = []
        top: _Line | None = None  # the last line at the left edge
        gap_from = 0  # where in `entries` the gap above the next item starts
        multiline = False
        for number, entry in enumerate(entries):
            if entry.line is None:
                if entry.level:
                    gap_from = number + 1
                continue
            if entry.level:
                multiline = True
                gap_from = number + 1
                continue
            body_follows = self._has_body(entry.line)
            if top is not None:
                docstring = self.kinds[top.first] == "DOCSTRING"
                gap = entries[gap_from : number + 1]
                if (docstring or multiline or body_follows) and not any(between.blank for between in gap):
                    gap[0].blank = True
            top, gap_from, multiline = entry.line, number + 1, False
        for number, entry in enumerate(entries):
            opens_body = number > 0 and entry.level > entries[number - 1].level
            if entry.blank and number and not opens_body:
                out.append("")
            out.append(entry.text)
        return "\n".join(out) + "\n" if out else ""

    def _has_body(self, line: _Line) -> bool:
        return self.kinds[line.last + 2] == INDENT

    # ---- one logical line ----------------------------------------------------------------------------

    def _print(self, line: _Line) -> tuple[str, int, list[str], _Preset | None]:
        """The text of a line, where it ends in the source (with its trailing comment), comments to put above, and the
        cells of a preset on one line."""
        tokens = self.tokens
        if self.kinds[line.first] == "DOCSTRING":
            printed = tokens.text(line.first).replace("\r\n", "\n")
            trailing = self._trailing(tokens.ends[line.last])
            stop = trailing.span.end if trailing else tokens.ends[line.last]
            return printed + (f"  {trailing.text}" if trailing else ""), stop, [], None
        reader = _LineReader(self, line)
        elements = reader.top()
        stop = tokens.ends[line.last]
        trailing = self._trailing(stop)
        if trailing:
            stop = trailing.span.end
            elements[-1].after = trailing.text
        hoisted, elements[0].before = elements[0].before, []
        is_list = self.kinds[line.first] in _LISTS or self._is_setting_line(line)
        text = lay_out(elements, line.level * STEP, is_list)
        return text, stop, hoisted, None if "\n" in text else self._preset(line, elements)

    def _preset(self, line: _Line, elements: list[Element]) -> _Preset | None:
        kinds = self.kinds[line.first : line.last + 1]
        if kinds[0] != "SIZE" or kinds[2:3] != ["COLON"] or kinds[3:4] in ([], ["OPEN_ROUND"]) or self._has_body(line):
            return None
        if any(element.pipe for element in elements):
            return None
        first, *others = cells(elements)
        head, _, setting = first.partition(": ")
        settings = (setting, *others)
        names = tuple(text.partition(" = ")[0] for text in settings)
        comment = f"  {elements[-1].after}" if elements[-1].after else ""
        return _Preset((f"{head}:", *settings), names, comment)

    def _is_setting_line(self, line: _Line) -> bool:
        sets = line.level == 1 and self.kinds[line.first + 1] in ("ASSIGN", "COLON", "DOT")
        return sets and self._top_kind(line) in ("SIZE", "OPTIMISE")

    def _top_kind(self, line: _Line) -> str:
        """The kind of the item a line belongs to."""
        first = max(index for index in self.tokens.items if index <= line.first)
        return self.kinds[first]

    def _trailing(self, end: int) -> Comment | None:
        if self.next_comment < len(self.comments):
            comment = self.comments[self.next_comment]
            if not comment.own_line and "\n" not in self.source[end : comment.span.start]:
                self.next_comment += 1
                return comment
        return None

    def comment_before(self, position: int) -> Comment | None:
        """The next comment, if it stands before a position."""
        if self.next_comment < len(self.comments):
            comment = self.comments[self.next_comment]
            if comment.span.start < position:
                self.next_comment += 1
                return comment
        return None


def _align_presets(entries: list[_Entry]) -> None:
    """Presets of the same settings, below one another, become a table."""
    start = 0
    for number in range(1, len(entries) + 1):
        first = entries[start].preset
        if number < len(entries) and first is not None:
            other = entries[number].preset
            if other is not None and not entries[number].blank and other.names == first.names:
                continue
        rows = [(entry, entry.preset) for entry in entries[start:number] if entry.preset is not None]
        lines = table([preset.cells for _, preset in rows]) if len(rows) > 1 else None
        for (entry, preset), line in zip(rows, lines or (), strict=lines is not None):
            entry.text = line + preset.comment
        start = number


class _LineReader:
    """Reads one logical line into elements: parts between commas and pipes, with the comments that belong to them."""

    def __init__(self, formatter: _Formatter, line: _Line) -> None:
        self.formatter = formatter
        self.tokens = formatter.tokens
        self.kinds = formatter.kinds
        self.line = line
        self.index = line.first
        self.unary: set[int] = set()
        self.depth = 0
        self.spaced_equals = False
        self.top_kind = formatter._top_kind(line)

    def top(self) -> list[Element]:
        elements, dangling = self._elements()
        assert not dangling, "a line ends with a token"
        return elements

    def _elements(self) -> tuple[list[Element], list[str]]:
        """Elements up to the closing bracket, or to the end of the line; and comments behind the last of them."""
        elements = [Element()]
        while True:
            inside = self.index <= self.line.last
            position = self.tokens.starts[self.index] if inside else self.tokens.ends[self.line.last]
            comment = self.formatter.comment_before(position)
            kind = self.kinds[self.index] if inside else END
            current = elements[-1]
            if comment:
                self._place(comment, elements, kind)
                continue
            if kind == END or kind in _CLOSE:
                break
            if kind == "COMMA":
                current.comma = True
                elements.append(Element())
                self.index += 1
                continue
            if kind == "PIPE" and not self.depth and current.parts:
                elements.append(Element(pipe=True))
                if current.later:
                    elements[-1].before, current.later = current.later, []
                current = elements[-1]
            self._part(current, kind)
        dangling: list[str] = []
        if not elements[-1].parts:
            dangling = elements.pop().before
        elif elements[-1].later:
            dangling, elements[-1].later = elements[-1].later, []
        return elements, dangling

    def _place(self, comment: Comment, elements: list[Element], following: str) -> None:
        """Gives a comment to the element it stands behind or above."""
        current = elements[-1]
        if not current.parts:
            before = elements[-2] if len(elements) > 1 else None
            if before and not comment.own_line and not before.after and not current.before:
                before.after = comment.text
            else:
                current.before.append(comment.text)
        elif (
            following in _CLOSE or following == "COMMA" or following == END or (following == "PIPE" and not self.depth)
        ):
            if not comment.own_line and not current.after and not current.later:
                current.after = comment.text
            elif following == "COMMA":
                current.before.append(comment.text)
            else:
                current.later.append(comment.text)
        else:
            current.before.append(comment.text)

    def _part(self, element: Element, kind: str) -> None:
        """The next token, or a bracket and what is in it, with the space in front of it."""
        index = self.index
        space = " " if element.parts and self._space(index) else ""
        if kind == "MINUS" and (index == self.line.first or self.kinds[index - 1] not in _OPERAND_END):
            self.unary.add(index)
        if kind not in _OPEN:
            element.add(space + self.tokens.text(index))
            self.index += 1
            return
        outer = self.spaced_equals
        self.spaced_equals = self._declares(index)
        self.depth += 1
        self.index += 1
        elements, dangling = self._elements()
        self.depth -= 1
        self.spaced_equals = outer
        called = self.kinds[index - 1] in _OPERAND_END and index > self.line.first
        opening, closing = self.tokens.text(index), self.tokens.text(self.index)
        lone_tuple = len(elements) == 1 and elements[0].comma and kind == "OPEN_ROUND" and not called
        self.index += 1
        if space:
            element.add(space)
        element.parts.append(Bracket(opening, closing, elements, dangling, lone_tuple))

    def _declares(self, index: int) -> bool:
        """Whether a bracket holds parameters or settings of a declaration: there `=` has spaces."""
        first = self.line.first
        kind = self.kinds[first]
        if self.depth or kind not in _HEADS | {"USE", "SIZE"}:
            return False
        if kind == "USE" or (kind == "SIZE" and self.kinds[index - 1] == "COLON"):
            return True
        after_axes = self.kinds[index - 1] == "CLOSE_SQUARE" and self._opens(index - 1) == first + 2
        return kind in _HEADS and (index == first + 2 or after_axes)

    def _opens(self, close: int) -> int:
        depth = 0
        for index in range(close, self.line.first, -1):
            depth += (self.kinds[index] in _CLOSE) - (self.kinds[index] in _OPEN)
            if depth == 0:
                return index
        return self.line.first

    def _space(self, index: int) -> bool:
        """Whether a space separates a token from the one before it in the same element."""
        kind, before = self.kinds[index], self.kinds[index - 1]
        if kind in _TIGHT_BEFORE or before in _TIGHT_AFTER or index - 1 in self.unary:
            return False
        if "ASSIGN" in (kind, before):
            if self.depth:
                return self.spaced_equals
            return not (self.top_kind == "OPTIMISE" and self.line.level)
        if kind in _OPEN and before == "OR" and self.kinds[index - 2] not in _OPERAND_END:
            return False  # `or(x, 0)` is a call: no operand stands before it
        if kind in _OPEN and before in _OPERAND_END:
            return self.kinds[self.line.first] == "TENSOR" and self.depth == 0
        return True


assert load_tables().texts["PIPE"] == "|>"
