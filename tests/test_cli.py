"""The command line as a person meets it: what it prints, how it exits, and that no traceback ever shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import says, weft
from weft.cli import COMMANDS, load

ROOT = Path(__file__).resolve().parent.parent

GOOD = """\
size tiny: dim = 8, vocab = 10, layers = 3

axis seq

block mix(x: real[seq, dim]) -> real[seq, dim]:
    return attend(x, x, x, over=dim, along=seq, mask=causal)

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    for layer in 0 .. layers:
        x = x + mix(x)
    return linear(x, dim -> vocab) as head

objective text(tokens: id[seq] in vocab):
    loss text = cross_entropy(m(tokens), next(tokens))
"""
BAD = GOOD.replace("embed(tokens", "embed(token")
LEAK = GOOD.replace(", mask=causal", "")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "good.weft"
    path.write_text(GOOD)
    return path


# ---- help and usage ----------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    run = weft("--help")
    assert run.returncode == 0
    for name, line in COMMANDS.items():
        assert f"  {name}" in run.stdout
        assert line in run.stdout


def test_no_arguments_prints_the_help() -> None:
    assert weft().stdout == weft("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    run = weft(name, "--help")
    assert run.returncode == 0
    assert "Examples:" in run.stdout
    assert f"weft {name} " in run.stdout.partition("Examples:")[2]
    command = load(name)
    for parameter in command.params:
        assert getattr(parameter, "help", "") or parameter.name == "help", f"{name}: {parameter.name} has no help"


def test_version() -> None:
    import weft as package

    assert weft("--version").stdout == f"weft {package.__version__}\n"


def test_an_unknown_command_offers_the_near_one() -> None:
    says(weft("chekc", "x.weft"), 2, "No such command 'chekc'", "Did you mean 'check'")


def test_an_unknown_option_offers_the_near_one() -> None:
    says(weft("check", "--siez", "tiny", "x.weft"), 2, "--siez", "--size")


def test_a_missing_argument_is_usage() -> None:
    says(weft("inspect", "x.weft"), 2, "VIEW")


def test_a_wrong_choice_names_the_right_ones() -> None:
    says(weft("inspect", "x.weft", "grpah"), 2, "'graph'", "'axes'")


def test_a_number_that_is_none() -> None:
    says(weft("train", "x.weft", "--steps", "many"), 2, "--steps", "many")


# ---- files -------------------------------------------------------------------------------------


def test_a_missing_file_is_one_line_with_a_near_name(spec: Path) -> None:
    says(weft("check", str(spec.with_name("godo.weft"))), 2, "no such file", "good.weft")


def test_a_folder_is_one_line(tmp_path: Path) -> None:
    says(weft("check", str(tmp_path)), 2, "is a folder")


def test_a_binary_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.weft"
    path.write_bytes(b"\x7fELF\0\0\1")
    says(weft("check", str(path)), 2, "binary")


def test_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.weft"
    path.write_bytes(b"axis seq\n# caf\xe9\n")
    says(weft("check", str(path)), 2, "UTF-8", "line 2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_line(spec: Path) -> None:
    spec.chmod(0)
    says(weft("check", str(spec)), 1, "permission denied")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f'"{sys.executable}" -m weft explain --list | head -1; exit "${{PIPESTATUS[0]}}"'
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stderr == ""


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.weft"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert weft("check", str(path)).returncode == 0


# ---- check -------------------------------------------------------------------------------------


def test_check_says_that_all_is_well(spec: Path) -> None:
    run = weft("check", str(spec))
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{spec}: no mistakes\n", "")


def test_check_shows_the_place_and_exits_with_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.weft"
    path.write_text(BAD)
    run = weft("check", str(path))
    assert run.returncode == 1
    assert "error[E301]" in run.stdout
    assert f"{path}:9:15" in run.stdout
    assert "tokens" in run.stdout  # the near name
    assert run.stderr == f"{path}: 1 mistake\n"


def test_check_finds_a_leak(tmp_path: Path) -> None:
    path = tmp_path / "leak.weft"
    path.write_text(LEAK)
    run = weft("check", str(path))
    assert run.returncode == 1
    assert "error[E401]" in run.stdout


def test_check_reads_standard_input() -> None:
    run = weft("check", "-", stdin=GOOD)
    assert (run.returncode, run.stdout) == (0, "<stdin>: no mistakes\n")


def test_check_as_json(spec: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.weft"
    bad.write_text(BAD)
    run = weft("check", str(spec), str(bad), "--json")
    assert run.returncode == 1
    first, second = json.loads(run.stdout)["files"]
    assert (first["file"], first["ok"], first["diagnostics"]) == (str(spec), True, [])
    assert (second["ok"], [diagnostic["code"] for diagnostic in second["diagnostics"]]) == (False, ["E301"])


def test_sizes_are_strict(spec: Path) -> None:
    run = weft("check", str(spec), "--size", "tyni")
    assert run.returncode == 1
    assert "error[E304]" in run.stdout
    assert "tiny" in run.stdout
    run = weft("check", str(spec), "--size", "tiny", "--set", "dmi=4")
    assert run.returncode == 1
    assert "error[E303]" in run.stdout
    assert "dim" in run.stdout


def test_set_wants_a_name_and_a_value(spec: Path) -> None:
    says(weft("check", str(spec), "--set", "dim"), 2, "NAME=VALUE")
    says(weft("check", str(spec), "--set", "dim=4", "--set", "dim=5"), 2, "twice")


def test_colour_follows_the_terminal_and_the_user(tmp_path: Path) -> None:
    path = tmp_path / "bad.weft"
    path.write_text(BAD)
    assert "\x1b[" not in weft("check", str(path), NO_COLOR="").stdout
    assert "\x1b[" in weft("check", str(path), NO_COLOR="", FORCE_COLOR="1").stdout
    assert "\x1b[" not in weft("check", str(path), NO_COLOR="1", FORCE_COLOR="1").stdout


# ---- fmt and explain ---------------------------------------------------------------------------


def test_fmt_rewrites_once_and_keeps_permissions(spec: Path) -> None:
    spec.write_text(GOOD.replace("x = x + mix(x)", "x=x+mix( x )"))
    spec.chmod(0o640)
    assert weft("fmt", "--check", str(spec)).returncode == 1
    assert weft("fmt", str(spec)).returncode == 0
    assert spec.read_text() == GOOD
    assert spec.stat().st_mode & 0o777 == 0o640
    assert weft("fmt", "--check", str(spec)).returncode == 0
    assert weft("fmt", str(spec)).stdout == ""


def test_fmt_leaves_a_broken_file_alone(spec: Path) -> None:
    text = GOOD + "block broken(:\n"
    spec.write_text(text)
    run = weft("fmt", str(spec))
    assert run.returncode == 1
    assert "error[E1" in run.stderr
    assert spec.read_text() == text


def test_fmt_of_standard_input_prints() -> None:
    run = weft("fmt", "-", stdin=GOOD.replace("x = x + mix(x)", "x = x+mix(x)"))
    assert (run.returncode, run.stdout) == (0, GOOD)


def test_explain_prints_the_page() -> None:
    run = weft("explain", "e301")
    assert run.returncode == 0
    assert run.stdout.startswith("E301: ")
    assert "Wrong:" in run.stdout
    assert "Right:" in run.stdout
    assert weft("explain", "301").stdout == run.stdout


def test_explain_of_an_unknown_code() -> None:
    says(weft("explain", "E999"), 2, "E999", "--list")


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_graph_joins_equal_turns(spec: Path) -> None:
    run = weft("inspect", str(spec), "graph")
    assert run.returncode == 0, run.stderr
    assert "layer 0 .. 2  (3 times):" in run.stdout
    assert "attend(x, x, x)" in run.stdout
    assert run.stdout.count("= attend(") == 1


def test_inspect_graph_as_json_is_whole(spec: Path) -> None:
    run = weft("inspect", str(spec), "graph", "--json")
    graph = json.loads(run.stdout)["graph"]
    assert graph["inputs"] == [{"name": "tokens", "type": "id[seq] in vocab"}]
    loop = next(child for child in graph["graph"]["children"] if child["kind"] == "turn")
    assert (loop["name"], loop["index"], loop["repeat"]) == ("layer", 0, 3)


def test_inspect_graph_draws(spec: Path, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    out = tmp_path / "graph.svg"
    run = weft("inspect", str(spec), "graph", "--svg", str(out))
    assert run.returncode == 0, run.stderr
    root = ElementTree.parse(out).getroot()  # noqa: S314  our own drawing
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    space = "{http://www.w3.org/2000/svg}"
    for box in root.iter(f"{space}rect"):
        x, y, w, h = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert x + w <= width
        assert y >= 0
        assert y + h <= height
    texts = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert any("layer 0 .. 2  (3 times)" in text for text in texts)
    assert any("attend(x, x, x)" in text for text in texts)


def test_inspect_params_counts(spec: Path) -> None:
    run = weft("inspect", str(spec), "params", "--json")
    params = json.loads(run.stdout)["params"]
    assert params["total"] == 8 * 10 * 2
    assert [weight["path"] for weight in params["weights"]] == ["embed.weight", "head.weight"]


def test_inspect_axes(spec: Path) -> None:
    axes = {axis["name"]: axis for axis in json.loads(weft("inspect", str(spec), "axes", "--json").stdout)["axes"]}
    assert axes["seq"]["kind"] == "ragged"
    assert axes["seq"]["size"] is None
    assert axes["dim"]["size"] == 8


def test_inspect_causality(spec: Path) -> None:
    run = weft("inspect", str(spec), "causality")
    assert "what row t of seq may know of tokens" in run.stdout
    assert "predicts tokens 1 row ahead" in run.stdout
    model, objective = json.loads(weft("inspect", str(spec), "causality", "--json").stdout)["causality"]
    assert model["sources"][0]["outputs"] == {"output": "t"}
    assert objective["targets"][0]["rows_ahead"] == 1


def test_inspect_decode(spec: Path, tmp_path: Path) -> None:
    decode = json.loads(weft("inspect", str(spec), "decode", "--json").stdout)["decode"]
    # Keys and values of three layers, 8 numbers of 4 bytes each.
    assert len(decode["caches"]) == 6
    assert decode["bytes_per_row"] == 6 * 8 * 4
    leak = tmp_path / "full.weft"
    leak.write_text(LEAK.partition("objective")[0])
    run = weft("inspect", str(leak), "decode")
    assert run.returncode == 1
    assert "error[E402]" in run.stderr


def test_inspect_refuses_options_of_other_views(spec: Path) -> None:
    says(weft("inspect", str(spec), "axes", "--svg", "x.svg"), 2, "--svg", "graph")


# ---- compile, train, generate ------------------------------------------------------------------


def test_compile_writes_a_folder_that_loads(spec: Path, tmp_path: Path) -> None:
    import weft as package

    out = tmp_path / "artifact"
    run = weft("compile", str(spec), "--size", "tiny", "-o", str(out))
    assert run.returncode == 0, run.stderr
    assert (out / "model.py").is_file()
    assert package.load(out) is not None
    says(weft("compile", str(spec), "-o", str(tmp_path)), 1, str(tmp_path))


def test_compile_does_not_choose_among_sizes(spec: Path, tmp_path: Path) -> None:
    spec.write_text(GOOD.replace("axis seq", "size big: dim = 16, vocab = 10, layers = 3\n\naxis seq"))
    run = weft("compile", str(spec), "-o", str(tmp_path / "artifact"))
    assert run.returncode == 1
    assert "error[E305]" in run.stderr
    assert not (tmp_path / "artifact").exists()


@pytest.mark.slow
def test_train_resume_and_generate(tmp_path: Path) -> None:
    path = tmp_path / "bytes.weft"
    path.write_text(GOOD.replace("vocab = 10", "vocab = 260"))
    (tmp_path / "a.txt").write_text("one two three\n" * 40)
    (tmp_path / "b.txt").write_text("four five six\n" * 40)
    out = tmp_path / "run"
    common = ["train", str(path), "--size", "tiny", "--max-length", "64", "--tokens-per-step", "256", "--threads", "1"]
    data = ["--data", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--out", str(out), "--eval-every", "0"]
    run = weft(*common, *data, "--steps", "3", "--json")
    assert run.returncode == 0, run.stderr
    assert "step 3/3" in run.stderr
    result = json.loads(run.stdout)
    assert (result["step"], result["reason"]) == (3, "finished")
    says(weft(*common, *data, "--steps", "3"), 1, "already holds a run")
    run = weft(*common, *data, "--steps", "5", "--resume", "--json")
    assert json.loads(run.stdout)["step"] == 5
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses if row.get("kind", "train") == "train"][-1] == 5

    run = weft("generate", str(out), "--prompt", "one", "--tokens", "8", "--ignore-end", "--threads", "1")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("one")
    both = ["--prompt", "one", "--prompt", "four", "--temperature", "1", "--seed", "3", "--json", "--threads", "1"]
    again = [weft("generate", str(out), *both, "--tokens", "8").stdout for _ in range(2)]
    assert again[0] == again[1]
    rows = json.loads(again[0])["continuations"]
    assert [row["prompt"] for row in rows] == ["one", "four"]
    says(weft("generate", str(out)), 2, "--prompt")


def test_generate_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    says(weft("generate", str(tmp_path), "--prompt", "x"), 1, "checkpoint")
    says(weft("generate", str(tmp_path / "none"), "--prompt", "x"), 2, "none")


def test_train_without_data_is_one_line(spec: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    says(weft("train", str(spec), "--steps", "1", "--out", out), 1, "data")
    says(weft("train", str(spec), "--steps", "1", "--out", out, "--data", str(tmp_path / "no.txt")), 1, "no.txt")


# ---- our own mistakes --------------------------------------------------------------------------


def _breaks(tmp_path: Path, statement: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command whose module fails in a way that nobody foresaw."""
    code = (
        "import weft.commands.explain as command\n"
        f"def run(code: str) -> None: {statement}\n"
        "command.run = run\n"
        "from weft.cli import main\n"
        "main(['explain', 'E301'])"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
    )


def test_a_bug_of_ours_is_called_one_and_leaves_a_report(tmp_path: Path) -> None:
    run = _breaks(tmp_path, "{}['missing']")
    says(run, 1, "bug in weft", "KeyError", "WEFT_TRACEBACK=1")
    (report,) = tmp_path.glob("weft-bug-*.txt")
    assert "Traceback" in report.read_text()
    assert "python" in report.read_text()


def test_a_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    assert "Traceback" in _breaks(tmp_path, "{}['missing']", WEFT_TRACEBACK="1").stderr


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    says(_breaks(tmp_path, "raise ModuleNotFoundError(name='torch')"), 1, "pip install 'weft[torch]'")


def test_an_interrupt_is_one_line(tmp_path: Path) -> None:
    says(_breaks(tmp_path, "raise KeyboardInterrupt"), 130, "interrupted")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    says(_breaks(tmp_path, "raise OSError(28, 'x', 'runs/a')"), 1, "runs/a: no space left")


TWO_MODELS = (
    GOOD
    + """
model features(tokens: id[seq] in vocab) -> real[seq, dim]:
    return embed(tokens, vocab -> dim) as table
"""
)


def test_a_view_of_one_of_several_models(tmp_path: Path) -> None:
    spec = tmp_path / "two.weft"
    spec.write_text(TWO_MODELS)
    run = weft("inspect", str(spec), "decode", "--of", "m")
    assert run.returncode == 0, run.stderr
    assert "model m goes on row by row along seq" in run.stdout
    says(weft("inspect", str(spec), "decode", "--of", "text"), 2, "text is an objective")


def test_what_cannot_be_shown_leaves_stdout_empty(tmp_path: Path) -> None:
    spec = tmp_path / "leak.weft"
    spec.write_text(LEAK.partition("objective")[0])
    for more in ((), ("--json",)):
        run = weft("inspect", str(spec), "decode", *more)
        assert (run.returncode, run.stdout) == (1, "")
        assert "error[E402]" in run.stderr


def test_a_drawing_that_cannot_be_written(spec: Path) -> None:
    run = weft("inspect", str(spec), "graph", "--svg", "/nowhere/out.svg")
    says(run, 2, "/nowhere/out.svg: there is no folder /nowhere")


def test_a_checkpoint_with_several_models(tmp_path: Path) -> None:
    spec, data, run = tmp_path / "two.weft", tmp_path / "data.txt", str(tmp_path / "run")
    spec.write_text(TWO_MODELS.replace("vocab = 10", "vocab = 260"))
    data.write_text("one two three four five six seven eight nine ten " * 20)
    options = ("--steps", "2", "--max-length", "64", "--tokens-per-step", "256", "--out", run)
    assert weft("train", str(spec), "--size", "tiny", "--data", str(data), *options).returncode == 0
    # The only model that scores ids is meant; the main one gives features.
    assert weft("generate", run, "--prompt", "one", "--tokens", "2").returncode == 0
    says(weft("generate", run, "--prompt", "one", "--of", "features"), 1, "generation needs one score for each vocab")
    says(weft("generate", run, "--prompt", "one", "--of", "none"), 2, "has no model none; it has m, features")
    says(weft("generate", run, "--prompt", "one", "--device", "nowhere"), 2, "the device nowhere cannot be used")
