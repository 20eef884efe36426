"""The `weft` command: its list of commands, and what happens to a mistake that reaches the top.

A command is a function in its own module of weft/commands, imported when it is run: `weft --help` reads the table below
and nothing else. Exit codes: 0 done, 1 mistakes found or the work failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from inspect import getdoc
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from weft import __version__
from weft.faults import report

# name: what it does, in one line. `weft.commands.<name>` has a function `run`; a name with a keyword ends in `_`.
COMMANDS = {
    "check": "Check specs and print every mistake.",
    "fmt": "Rewrite specs in the canonical form.",
    "explain": "Explain an error code, with a wrong and a right spec.",
    "inspect": "Show what a spec means: graph, axes, params, causality, decoding.",
    "verify": "Compare what the compiler makes of a spec with float64.",
    "tune": "Measure which kernels are fastest on this machine's GPU.",
    "compile": "Lower a spec and write it to a folder.",
    "train": "Train a spec's objective on files.",
    "generate": "Continue a prompt with a trained checkpoint.",
    "sample": "Have a trained checkpoint tell text and pictures.",
    "entropies": "Measure how hard each byte is to foresee, for dynamic patches.",
    "latents": "Encode pictures with a trained autoencoder, for a model of latents.",
    "import": "Make a checkpoint from a published one.",
    "export": "Write a checkpoint as it is published elsewhere.",
}

_HELP = """A language for neural architectures.

A spec describes a model for one example; Weft checks it, trains it on packed batches and derives its decoder.
"""

_EPILOG = """\b
Start here:
  weft check specs/olmo2.weft               find mistakes
  weft inspect specs/olmo2.weft graph       see what the spec means
  weft train specs/olmo2.weft --size tiny --data docs --steps 200 --out runs/first
  weft generate runs/first --prompt "The weft is"

\b
`weft COMMAND --help` tells more about each command.
"""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(TyperGroup):
    """A group that knows its commands by name and help line, and imports one when it is run."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, line in COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=line)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


class _Command(TyperCommand):
    """A command. Options named in `greedy` take every word up to the next option, as a shell's `docs/*.md` needs.

    `is_brief`: it ends before its garbage is worth collecting.
    """

    greedy: tuple[str, ...] = ()
    is_brief = False

    def invoke(self, ctx: Any) -> Any:
        if not self.is_brief:
            gc.enable()
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`FILE...` where several are taken, and no braces around what is always given."""
        pieces = []
        for piece, param in zip(super().collect_usage_pieces(ctx)[1:], self._arguments(), strict=True):
            pieces.append(piece.strip("{}") + ("..." if param.nargs == -1 else ""))
        return ["[OPTIONS]", *pieces]

    def _arguments(self) -> list[Any]:
        return [param for param in self.params if param.param_type_name == "argument"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _spread(args, self.greedy))


def _spread(words: list[str], greedy: tuple[str, ...]) -> list[str]:
    """`FILE --data a b --steps 3` as `FILE --data a --data b --steps 3`.

    Only behind the FILE: in `--data a FILE` the FILE would be taken for data.
    """
    spread: list[str] = []
    option: str | None = None
    if not words or words[0].startswith("-"):
        return words
    for index, word in enumerate(words):
        if word == "--":
            return [*spread, *words[index:]]
        if word.startswith("-") and word != "-":
            option = word if word in greedy else None
        elif option is not None and spread[-1] != option:
            spread.append(option)
        spread.append(word)
    return spread


def load(name: str) -> TyperCommand:
    """The command of that name, from its module."""
    module = import_module(f"weft.commands.{name}_" if name == "import" else f"weft.commands.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(
        name,
        help=COMMANDS[name] + "\n\n" + (getdoc(module.run) or ""),
        epilog=module.EXAMPLES,
        context_settings=_CONTEXT,
        no_args_is_help=True,
        cls=_Command,
    )(module.run)
    command = typer.main.get_command(app)
    assert isinstance(command, _Command)
    command.greedy = getattr(module, "GREEDY", ())
    command.is_brief = getattr(module, "BRIEF", False)
    return command


app = typer.Typer(
    cls=_Commands,
    help=_HELP,
    epilog=_EPILOG,
    context_settings=_CONTEXT,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    del version  # the callback has printed it


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. Every exception ends here, as one line or a report."""
    # Looking for garbage takes a quarter of a check's time, and finds almost none. Long commands turn it on again.
    gc.disable()
    # A terminal that cannot show a character gets an escape instead of a crash in the middle of a line.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = typer.main.get_command(app)(args=arguments, prog_name="weft", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            # typer has turned Ctrl-C into this code; a command that handles it itself raises SystemExit.
            code = report(KeyboardInterrupt())
    except BaseException as error:  # noqa: BLE001  the one place where all of them are worded
        code = report(error)
    sys.exit(code if isinstance(code, int) else 0)
