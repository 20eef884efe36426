"""What specs mean: short specs, one idea each."""

from __future__ import annotations

import pytest

from tests.diagnostics import checked, codes
from weft.codegen.ops import OPS
from weft.dsl.check import Checked, check
from weft.dsl.program import Program, Weight
from weft.dsl.source import Source

HEAD = "size dim = 8\nsize wide = 16\nsize heads = 2\naxis seq\naxis other\n"


def spec(text: str, size: str | None = None, **overrides: object) -> Checked:
    return checked(HEAD + text, "spec.weft", size, **overrides).value()


def model(body: str, signature: str = "(x: real[seq, dim]) -> real[seq, dim]", before: str = "") -> Program:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    return spec(f"{before}model m{signature}:\n{lines}").model


def types(program: Program) -> dict[str, str]:
    return {name: str(value.type) for name, value in program.bindings.items()}


def ops(program: Program) -> list[str]:
    return [node.op.name for node in program.nodes]


def paths(program: Program) -> list[str]:
    return [weight.path for weight in program.weights]


# ---- types and levels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "type"),
    [
        ("x", "real[seq, dim]"),
        ("linear(x, dim -> wide)", "real[seq, wide]"),
        ("linear(x, dim -> (heads, wide))", "real[seq, heads, wide]"),
        ("mean(x, over=dim)", "real[seq]"),
        ("mean(x, over=seq)", "real[dim]"),
        ("x > 0", "flag[seq, dim]"),
        ("position(seq)", "int[seq]"),
        ("embed(i, wide -> dim)", "real[seq, dim]"),
        ("x * c", "real[seq, dim]"),
        ("c * x", "real[seq, dim]"),
        ("x * t", "real[seq, dim]"),
        ("t + c", "real[dim]"),
        ("topk(x, over=dim, k=heads).index", "id[seq, heads] in dim"),
        ("silu(x)", "real[seq, dim]"),
        ("outer(c, mean(linear(x, dim -> wide), over=seq))", "real[dim, wide]"),
        ("next(i)", "id[seq] in wide"),
        ("i == 3", "flag[seq]"),
        ("where(x > 0, x, 0)", "real[seq, dim]"),
        ("attend(x, x, x, over=dim, along=seq)", "real[seq, dim]"),
        ("1 + 2 * x", "real[seq, dim]"),
        ("precise(x * 2) + x", "real[seq, dim]"),
        ("length(seq)", "int"),
    ],
)
def test_type(expression: str, type: str) -> None:
    signature = "(x: real[seq, dim], i: id[seq] in wide, c: real[dim], t: real) -> real[seq, dim]"
    program = model(f"y = {expression}\nreturn x", signature)
    assert types(program)["y"] == type


def test_a_value_per_example_is_accepted_below() -> None:
    block = "block f(x: real[seq, dim], c: real[dim]) -> real[seq, dim]:\n    return x * c\n"
    program = model(
        "return f(x, c) + f(x, mean(x, over=seq))", "(x: real[seq, dim], c: real[dim]) -> real[seq, dim]", block
    )
    assert ops(program).count("mul") == 2


def test_rebinding_gives_a_new_value_of_its_own_type() -> None:
    program = model("x = linear(x, dim -> wide)\nx = x > 0\nreturn where(mean(real(x), over=wide) > 0, 1.0, 0.0)",
                    "(x: real[seq, dim]) -> real[seq]")  # fmt: skip
    found = [str(output.type) for node in program.nodes for output in node.outputs if output.name == "x"]
    assert found == ["real[seq, wide]", "flag[seq, wide]"]


def test_a_value_has_the_name_of_its_binding() -> None:
    program = model("y = 2 * x + 1\ny = y * y\nreturn y")
    assert [node.outputs[0].name for node in program.nodes] == ["mul", "y", "y"]


def test_precise_marks_all_of_its_expression() -> None:
    program = model("y = precise(rms_norm(x) * 2)\nreturn y + x")
    assert all(node.precise for node in program.nodes[:-1])
    assert not program.nodes[-1].precise


def test_none_is_one_more_id() -> None:
    text = """
block condition(label: id in wide or none) -> real[dim]:
    return embed(label, wide -> dim)
"""
    signature = "(x: real[seq, dim], label: id in wide or none) -> real[seq, dim]"
    program = model("given = label == none\nreturn x + condition(label) as a + condition(none) as b", signature, text)
    assert types(program)["given"] == "flag"
    assert [weight.shape for weight in program.weights] == [(17, 8), (17, 8)]


def test_a_parameter_left_out_is_none() -> None:
    text = """
block scaled(x: real[..], by: real[..] = none) -> real[..]:
    if by == none:
        return x
    return x * by
"""
    assert ops(model("return scaled(x)", before=text)) == []
    assert ops(model("return scaled(x, x)", before=text)) == ["mul"]


# ---- blocks ---------------------------------------------------------------------------------------

LAYER = """
block layer[row, width](x: real[row, width], count: size, mask: mask, inner: block) -> real[row, width]:
    axis part = width / count
    q = linear(x, width -> (count, part))
    mixed = attend(q, q, q, over=part, along=row, mask=mask)
    return inner(linear(mixed, (count, part) -> width))
"""


def test_generic_axes_are_inferred_at_each_call() -> None:
    signature = "(x: real[seq, dim], y: real[other, wide]) -> real[seq, dim]"
    program = model(
        "a = layer(x, 2, causal, silu)\nb = layer(y, heads, causal and window(3), rms_norm)\n"
        "return a + linear(mean(b, over=other), wide -> dim)", signature, LAYER,
    )  # fmt: skip
    assert types(program)["a"] == "real[seq, dim]"
    assert types(program)["b"] == "real[other, wide]"
    shapes = {weight.path: weight.shape for weight in program.weights}
    assert shapes["a.layer.q.linear.weight"] == (2, 4, 8)
    assert shapes["b.layer.q.linear.weight"] == (2, 8, 16)


def test_local_axes_differ_between_calls() -> None:
    """Equal in name and length, and yet two axes: each call has its own."""
    program = model("return layer(layer(x, 2, causal, silu) as a, 2, causal, silu) as b", before=LAYER)
    parts = {
        axis for node in program.nodes for value in node.outputs for axis in value.type.axes if axis.name == "part"
    }
    assert len(parts) == 2


def test_axes_parameters_are_spliced() -> None:
    text = "block total(x: real[..], over: axes) -> real[..]:\n    return sum(x, over=over)\n"
    program = model("h = linear(x, dim -> (heads, wide))\ny = total(h, (heads, wide))\nreturn x", before=text)
    assert types(program)["y"] == "real[seq]"


def test_a_default_may_speak_of_another_argument() -> None:
    text = (
        "block stretch(x: real[..], by: axis, of: axis = last_axis(x)) -> real[..]:\n    return linear(x, of -> by)\n"
    )
    program = model("y = stretch(x, wide)\nreturn x", before=text)
    assert types(program)["y"] == "real[seq, wide]"


def test_several_results() -> None:
    text = "block both(x: real[..]):\n    return (x * 2, x * 3)\n"
    program = model("a, b = both(x)\nreturn a + b", before=text)
    assert ops(program) == ["mul", "mul", "add"]


# ---- static choice --------------------------------------------------------------------------------

CHOICE = """
enum rule: space, entropy
option cut: rule = space
option places: list = (0, 2)
option rate: real = 0.5
option gated: flag = false
size tiny: layers = 3
size large: layers = 5, cut = entropy, places = (1,), rate = 2, gated = true
model m(x: real[seq, dim]) -> real[seq, dim]:
    for layer in 0 .. layers:
        for place in places:
            if place == layer:
                x = x * rate
    if cut == entropy:
        x = silu(x)
    elif gated:
        x = x - 1
    else:
        x = x + 1
    return x
"""


def test_presets_choose_sizes_and_options() -> None:
    assert ops(spec(CHOICE, "tiny").model) == ["mul", "mul", "add"]
    assert ops(spec(CHOICE, "large").model) == ["mul", "sigmoid", "mul"]


def test_overrides_beat_the_preset() -> None:
    tiny = spec(CHOICE, "tiny", cut="entropy", layers="1", rate=3)
    assert ops(tiny.model) == ["mul", "sigmoid", "mul"]
    assert tiny.sizes["layers"] == 1
    assert ops(spec(CHOICE, "tiny", gated="true").model)[-1] == "sub"


def test_the_only_preset_is_taken_and_overridden() -> None:
    only = CHOICE.replace("size large: layers = 5, cut = entropy, places = (1,), rate = 2, gated = true\n", "")
    assert spec(only).sizes["layers"] == 3
    assert spec(only, layers="1").sizes["layers"] == 1


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("layers", "many", "E309"), ("layers", "1.5", "E309"), ("cut", "spaces", "E309"), ("rate", "fast", "E309"),
     ("gated", "1", "E309"), ("layer", "3", "E303"), ("layers", "-1", "E306"), ("places", "3", "E309")],
)  # fmt: skip
def test_bad_override(name: str, value: str, code: str) -> None:
    assert codes(HEAD + CHOICE, size="tiny", **{name: value}) == [code]


def test_a_name_bound_in_both_branches_is_visible_after() -> None:
    program = model("if dim > 4:\n    y = x\nelse:\n    y = x * 2\nreturn y")
    assert ops(program) == []


def test_a_return_in_a_static_if_ends_the_body() -> None:
    assert ops(model("if dim == 8:\n    return x\ny = silu(x)\nreturn y")) == []


def test_training_is_static() -> None:
    text = """
model m(x: real[seq, dim]) -> real[seq, dim]:
    return dropout(linear(x, dim -> dim), 0.1)
objective o(x: real[seq, dim]):
    loss = mean(m(x)^2, over=dim)
"""
    both = spec(text)
    assert "bernoulli" not in ops(both.models["m"])
    assert "bernoulli" in ops(both.objectives["o"])


def test_families() -> None:
    text = "option mult: list = (1, 2, 4)\naxis level[i] = dim * mult[i]\n"
    body = """
for i in 0 .. 3:
    skip[i] = linear(x, dim -> level[i])
y = x
for i in 0 .. 3:
    y = y + linear(skip[2 - i], level[2 - i] -> dim) as back
return y
"""
    program = model(body, before=text)
    shapes = {weight.path: weight.shape for weight in program.weights}
    assert shapes["i.2.linear.weight"] == (32, 8)
    assert shapes["i.0.back.weight"] == (8, 32)


def test_ranges_are_half_open() -> None:
    assert ops(model("for i in 1 .. 4:\n    x = x + i\nreturn x")) == ["add"] * 3
    assert ops(model("for i in 4 .. 1:\n    x = x + i\nreturn x")) == []


def test_lengths_are_formulas() -> None:
    """dim / 2 * 2 is dim, at every size; 8 is dim at this one only."""
    text = "axis half = dim / 2\naxis pair = 2\naxis again = half * 2\n"
    model("return rename(rename(x, dim -> again), again -> dim)", before=text)
    model("h = unflatten(x, dim -> (pair, half))\nreturn flatten(h, (pair, half) -> dim)", before=text)
    assert codes(HEAD + "axis eight = 8\nmodel m(x: real[seq, dim]) -> real[seq, eight]:\n"
                 "    return rename(x, dim -> eight)\n") == ["E208"]  # fmt: skip


def test_derived_sizes_follow_an_override() -> None:
    text = "size half = dim / 2\nmodel m(x: real[seq, dim]) -> real[seq, half]:\n    return linear(x, dim -> half)\n"
    assert spec(text, dim=20).sizes["half"] == 10
    assert spec(text, half=3).sizes["half"] == 3


# ---- models -----------------------------------------------------------------------------

TWO_STREAMS = """
model m(x: real[seq, dim]) -> real[seq, dim]:
    hidden = linear(x, dim -> dim)
    return attend(hidden, hidden, hidden, over=dim, along=seq, mask=causal)
objective o(a: real[seq, dim], b: real[other, dim]):
    first = m(a)
    second = m(b)
    loss one = mean(first.hidden^2, over=dim)
    loss two = mean(second^2, over=dim)
"""


def test_a_model_is_one_instance_and_runs_along_the_callers_axes() -> None:
    objective = spec(TWO_STREAMS).objectives["o"]
    assert paths(objective) == ["hidden.linear.weight"]
    assert types(objective)["first"] == "real[seq, dim]"
    assert types(objective)["second"] == "real[other, dim]"
    assert [str(loss.value.type) for loss in objective.losses] == ["real[seq]", "real[other]"]


def test_two_models_of_one_file_lead_their_paths() -> None:
    text = """
model encoder(x: real[seq, dim]) -> real[seq, dim]:
    return linear(x, dim -> dim)
model decoder(x: real[seq, dim]) -> real[seq, dim]:
    return linear(encoder(x), dim -> dim)
"""
    both = spec(text)
    assert paths(both.models["encoder"]) == ["encoder.linear.weight"]
    assert paths(both.models["decoder"]) == ["encoder.linear.weight", "decoder.linear.weight"]


# ---- weights --------------------------------------------------------------------------------------


def test_the_last_init_wins_and_the_site_beats_all() -> None:
    text = """
model m(x: real[seq, dim]) -> real[seq, dim]:
    for i in 0 .. 2:
        x = linear(x, dim -> dim, init=normal(0.1 * (i + 1)))
    x = linear(x, dim -> dim) as middle
    return linear(x, dim -> dim) as head
init **.weight = normal(fan_in^-0.5)
init head = zeros
init **.middle.** = ones
init middle = constant(3)
"""
    inits = {
        weight.path: weight.init for weight in spec(text.replace("init **.middle.** = ones\n", "")).weights.values()
    }
    assert dict(inits["i.1.linear.weight"].numbers)["std"] == pytest.approx(0.2)
    assert inits["middle.weight"].kind == "constant"
    assert inits["head.weight"].kind == "zeros"


def test_copy_stands_for_what_the_pattern_caught() -> None:
    text = """
model m(x: real[seq, dim]) -> real[seq, dim]:
    for layer in 0 .. 2:
        x = linear(x, dim -> dim) as text + linear(x, dim -> dim) as image
    return x
init layer.*.image = copy(layer.*.text)
"""
    inits: dict[str, Weight] = spec(text).weights
    assert inits["layer.1.image.weight"].init.source == "layer.1.text.weight"
    assert inits["layer.1.text.weight"].init.source is None


def test_optimise() -> None:
    text = """
model m(x: real[seq, dim]) -> real[seq, dim]:
    return linear(x, dim -> dim) as head
optimise by adamw(lr=3e-4, betas=(0.9, 0.95), decay=0.1, clip=1.0):
    head: decay=0
"""
    optimiser = spec(text).optimiser
    assert optimiser is not None
    assert dict(optimiser.settings) == {"lr": 3e-4, "betas": (0.9, 0.95), "decay": 0.1, "clip": 1.0}
    assert [(line.pattern, dict(line.settings)) for line in optimiser.lines] == [("head", {"decay": 0.0})]


def test_shared_blocks_read_one_set_of_weights() -> None:
    text = """
shared both: mix()
shared stage[i]: mix(count=i + 1)
shared table: real[dim] = ones
block mix[row, width](x: real[row, width], count: number = 1) -> real[row, width]:
    return linear(x, width -> width) * count
"""
    program = model("x = both(x) + both(x * 2)\nx = stage[0](x) + stage[2](x)\nreturn x * table", before=text)
    assert paths(program) == ["both.linear.weight", "stage.0.linear.weight", "stage.2.linear.weight", "table"]


def test_a_shared_value_of_a_branch_not_taken_is_used() -> None:
    text = "option tied: flag = false\nshared table: real[dim]\n"
    assert paths(model("if tied:\n    x = x * table\nreturn x", before=text)) == []


# ---- masks and axes -------------------------------------------------------------------------------


def test_masks_capture_values_by_name() -> None:
    text = "mask together = causal and same(kind)\n"
    signature = "(x: real[seq, dim], kind: int[seq]) -> real[seq, dim]"
    program = model("return attend(x, x, x, over=dim, along=seq, mask=together)", signature, text)
    (node,) = program.nodes
    assert program.inputs[1] in node.inputs


def test_axes_as_types() -> None:
    text = (
        "axis cell = grid(4, 4)\naxis image grid\naxis half = image / 2\naxis talk = seq + other\naxis line = 1 + seq\n"
    )
    signature = "(x: real[cell, dim], y: real[image, dim], z: real[half], w: real[talk], v: real[line]) -> real[dim]"
    program = model("return mean(x, over=cell)", signature, text)
    assert program.inputs[0].type.axes[0].size == 16
    assert all(value.type.axes[0].is_ordered for value in program.inputs[1:])


def test_missing_rows_are_passed_on_and_skipped() -> None:
    text = """
model m(x: real[seq, dim]) -> real[seq, dim]:
    return linear(x, dim -> dim)
objective o(x: real[seq, dim]):
    loss = mean((m(x) - next(x))^2, over=dim)
"""
    (loss,) = spec(text).objectives["o"].losses
    assert loss.value.type.missing


# ---- all sizes ------------------------------------------------------------------------------------


def test_the_result_of_all_sizes_is_the_first() -> None:
    found = checked(HEAD + CHOICE).value()
    assert found.size == "tiny"
    assert found.presets == ("tiny", "large")


DEEP = """
size one: layers = 1
size two: layers = 40{setting}
model m(x: real[seq, dim]) -> real[seq, dim]:
    for layer in 0 .. layers:
        x = {body}
    return x
objective o(x: real[seq, dim]):
    loss = mean((m(x) - next(x))^2, over=dim)
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("x + linear(x, dim -> dim)", []),
        ("linear(previous(x, 1), dim -> dim)", []),
        # One row ahead in each turn: only the deeper size sees its target.
        ("linear(x, dim -> dim) if_shift", ["E401"]),
    ],
)
def test_a_deeper_size_is_checked_as_if_whole(body: str, code: list[str]) -> None:
    text = DEEP.replace("{setting}", "").replace("{body}", body)
    text = text.replace(" if_shift", "\n        x = or_missing(shift(x, -1), 0)")
    first = text.replace(
        "    for layer in 0 .. layers:",
        "    x = previous(linear(x, dim -> dim) as in_, 3)\n    for layer in 0 .. layers:",
    )
    assert codes(HEAD + first) == code


def test_weights_of_single_turns_count_in_every_size() -> None:
    text = DEEP.replace("{setting}", "").replace("{body}", "linear(x, dim -> dim)") + "freeze layer.30\n"
    assert codes(HEAD + text) == ["E503"]  # size one has no such layer
    assert codes(HEAD + text, size="two") == []


def test_a_size_without_a_number_is_said_where_only_calls_read_it():
    """Counting the operations reads it first, and says nothing."""
    text = """
size wide: width = 8
size broad: width = 16
size dim = 4
axis seq
block grow(x: real[seq, dim], to: size) -> real[seq, dim]:
    y = linear(x, dim -> to)
    return linear(y, to -> dim) as back
model m(x: real[seq, dim]) -> real[seq, dim]:
    return grow(x, width)
"""
    errors = check(Source("page", text), OPS).problems.errors
    assert [error.code for error in errors] == ["E305"]
