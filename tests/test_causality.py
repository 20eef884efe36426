"""Causality of whole programs: hand-built ones with toy ops, and specs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from weft.codegen.ops import OPS
from weft.dsl import frontier
from weft.dsl.axes import Axis, AxisKind, Cut, Joined, Ragged, Static
from weft.dsl.causality import check_generates, check_targets, frontiers, leak_path
from weft.dsl.check import check_all
from weft.dsl.diagnostics import Problems
from weft.dsl.errors.causality import NotGenerated, TargetLeak
from weft.dsl.frontier import Difference, Everything, Frontier, Reach
from weft.dsl.length import Length
from weft.dsl.opdef import OpDef
from weft.dsl.program import Distribution, Node, Program, Value, Weight
from weft.dsl.source import Source, Span
from weft.dsl.value_type import Flag, Int, Real, ValueType

SOURCE = Source("toy", "the whole text of the toy\n" * 40)


def make_axis(name: str, kind: AxisKind | None = None, size: int | None = None) -> Axis:
    return Axis(name, kind or Ragged(), Length.symbol(name), size, Span(SOURCE, 0, 1))


SEQ, DIM = make_axis("seq"), make_axis("dim", Static(), 8)


def op(name: str, rule: Callable[..., Frontier | tuple[Frontier, ...]], row_wise: bool = True) -> OpDef:
    # The walk also accepts one frontier per output, which the type of OpDef leaves out.
    def call(node: Node, operands: tuple[Frontier, ...]) -> Frontier:
        return rule(*operands)  # type: ignore[return-value]

    def nothing(*_: object) -> None:
        return None

    return OpDef(name, (), nothing, call, nothing, "", row_wise=row_wise)  # type: ignore[arg-type]


MIX = op("mix", frontier.join)
NEXT = op("next", lambda x: frontier.following(x, 1, SEQ), row_wise=False)
NEXT_2 = op("next 2", lambda x: frontier.following(x, 2, SEQ), row_wise=False)
PREVIOUS = op("previous", lambda x: frontier.previous(x, 1, SEQ), row_wise=False)
FULL = op("full", lambda x: frontier.attend_keys(x, Reach(SEQ, SEQ, Everything())), row_wise=False)
CAUSAL = op("causal", lambda x: frontier.attend_keys(x, Reach(SEQ, SEQ, Difference(0))), row_wise=False)
LENGTH = op("length", lambda: frontier.length_of(SEQ), row_wise=False)
MEAN = op("mean", lambda x: frontier.reduce_over_axis(x, SEQ), row_wise=False)


@dataclass
class Toy:
    """Builds a program; spans follow one another, so that each node can be told from the others."""

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    at: int = 0

    def span(self) -> Span:
        self.at += 2
        return Span(SOURCE, self.at, self.at + 1)

    def input(self, name: str, *axes: Axis) -> Value:
        self.inputs.append(Value(name, ValueType(Int(), axes or (SEQ,)), self.span()))
        return self.inputs[-1]

    def weight(self, name: str) -> Weight:
        self.weights.append(
            Weight(name, ValueType(Real(), (DIM,)), self.span(), name, Distribution("normal"), outputs=1)
        )
        return self.weights[-1]

    def __call__(self, name: str, op: OpDef, *inputs: Value, type: ValueType | None = None) -> Value:
        value = Value(name, type or ValueType(Real(), (SEQ, DIM)), self.span())
        self.nodes.append(Node(op, None, inputs, (value,), value.span, ()))
        return value

    def program(self) -> Program:
        return Program(
            "toy", "objective", tuple(self.inputs), tuple(self.weights), tuple(self.nodes), (), (), self.span()
        )

    def leaks(self, *targets: tuple[Value, int, Value]) -> list[TargetLeak]:
        made = {output: node for node in self.nodes for output in node.outputs}
        problems = Problems()
        check_targets(self.program(), [(source, k, made[value]) for source, k, value in targets], problems)
        assert all(isinstance(error, TargetLeak) for error in problems.errors)
        return [error for error in problems.errors if isinstance(error, TargetLeak)]


# -- frontiers of a program


def test_a_walk_gives_every_value_its_element() -> None:
    toy = Toy()
    tokens, other, table = toy.input("tokens"), toy.input("other"), toy.weight("table")
    x = toy("x", MIX, tokens, table)
    late = toy("late", NEXT, x)
    mean = toy("mean", MEAN, x, type=ValueType(Real(), (DIM,), per_example=True))
    back = toy("back", MIX, other, mean)
    known = frontiers(toy.program(), tokens)
    assert [str(known[v]) for v in (tokens, other, table, x, late, mean, back)] == [
        "t", "none", "none", "t", "t+1", "all", "all",
    ]  # fmt: skip


def test_an_inner_value_may_be_the_source() -> None:
    toy = Toy()
    pixels, table = toy.input("pixels"), toy.weight("table")
    z = toy("z", FULL, toy("mixed", MIX, pixels, table))
    known = frontiers(toy.program(), z)
    assert (str(known[pixels]), str(known[z])) == ("none", "t")


def test_length_is_all_of_its_axis_only() -> None:
    toy = Toy()
    tokens, image = toy.input("tokens"), toy.input("image", make_axis("image"))
    count = toy("count", LENGTH, type=ValueType(Int(), (), per_example=True))
    assert str(frontiers(toy.program(), tokens)[count]) == "all"
    assert str(frontiers(toy.program(), image)[count]) == "none"


def test_an_op_may_answer_for_each_output() -> None:
    toy = Toy()
    tokens = toy.input("tokens")
    two = op("two", lambda x: (x, frontier.following(x, 3)))
    outputs = tuple(Value(name, tokens.type, toy.span()) for name in ("a", "b"))
    toy.nodes.append(Node(two, None, (tokens,), outputs, toy.span(), ()))
    known = frontiers(toy.program(), tokens)
    assert [str(known[v]) for v in outputs] == ["t", "t+3"]


def test_what_loses_its_axis_sees_everything() -> None:
    token = make_axis("token", Static(), 16)
    toy = Toy()
    x = toy.input("x", token, DIM)
    kept = toy("kept", MIX, x, type=ValueType(Real(), (token, DIM)))
    contracted = toy("contracted", MIX, kept, type=ValueType(Real(), (DIM,)))
    known = frontiers(toy.program(), x, token)
    assert (str(known[kept]), str(known[contracted])) == ("t", "all")


# -- targets


def predicts(build: Callable[[Toy, Value, Weight], Value]) -> list[TargetLeak]:
    """Leaks of an objective that compares what `build` makes with next(tokens)."""
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    logits = build(toy, tokens, table)
    target = toy("target", NEXT, tokens)
    picked = toy("picked", MIX, logits, target)
    toy("loss", MIX, toy("total", MIX, logits), picked)
    return toy.leaks((tokens, 1, target))


def test_a_causal_model_keeps_its_claim() -> None:
    assert not predicts(lambda toy, tokens, table: toy("logits", CAUSAL, toy("x", MIX, tokens, table)))


def test_a_model_that_sees_all_leaks_and_says_where() -> None:
    def build(toy: Toy, tokens: Value, table: Weight) -> Value:
        x = toy("x", MIX, tokens, table)
        return toy("logits", MIX, toy("x2", MIX, x, toy("mixed", FULL, x)), table)

    (leak,) = predicts(build)
    assert (leak.operand, leak.sees, leak.may_see, leak.source) == ("logits", "all", "t", "tokens")
    assert [(step.name, step.sees) for step in leak.path] == [
        ("x", "t"),
        ("mixed", "all"),
        ("x2", "all"),
        ("logits", "all"),
    ]
    diagnostic = leak.describe()
    assert diagnostic.title == "logits sees all of tokens, but has to predict the row after t"
    assert "mixed sees all here" in [label.text for label in diagnostic.secondary]


def test_the_path_is_the_shortest() -> None:
    def build(toy: Toy, tokens: Value, table: Weight) -> Value:
        h = toy("x", MIX, tokens, table)
        for layer in range(5):
            h = toy(f"h{layer}", MIX, h, toy(f"mixed{layer}", FULL, h))
        return h

    (leak,) = predicts(build)
    assert [step.name for step in leak.path] == ["x", "mixed0", "h0", "h1", "h2", "h3", "h4"]
    # Its ends are shown, and where the claim is made.
    assert len(leak.describe().secondary) == 7


def test_the_target_itself_as_input_is_a_leak() -> None:
    def build(toy: Toy, tokens: Value, table: Weight) -> Value:
        ahead = toy("ahead", NEXT, tokens)
        return toy("logits", CAUSAL, toy("x", MIX, ahead, table))

    (leak,) = predicts(build)
    assert (leak.sees, leak.path[0].name) == ("t+1", "tokens")


def test_a_target_through_weights_alone_is_a_leak_where_it_meets_the_target() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    target = toy("target", NEXT, tokens)
    logits = toy("logits", MIX, toy("code", MIX, target, table), table)
    toy("picked", MIX, logits, target)
    (leak,) = toy.leaks((tokens, 1, target))
    assert (leak.operand, leak.sees) == ("logits", "t+1")


def test_a_projected_target_is_still_a_target() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    z = toy("z", MIX, tokens, table)
    target = toy("target", NEXT, z)
    projected = toy("projected", MIX, target, table)
    toy("good", MIX, toy("causal", CAUSAL, z), projected)
    assert not toy.leaks((z, 1, target))
    toy("bad", MIX, toy("full", FULL, z), projected)
    (leak,) = toy.leaks((z, 1, target))
    assert leak.operand == "full"


def test_values_made_from_targets_only_are_targets() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    target = toy("target", NEXT, tokens)
    filled = toy("filled", MIX, target)
    logits = toy("logits", FULL, toy("x", MIX, tokens, table))
    toy("picked", MIX, logits, filled)
    (leak,) = toy.leaks((tokens, 1, target))
    assert leak.operand == "logits"


def test_two_targets_of_one_model() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    one, two = toy("one", NEXT, tokens), toy("two", NEXT_2, tokens)
    x = toy("x", MIX, tokens, table)
    near = toy("near", MIX, toy("logits", CAUSAL, x), one)
    far = toy("far", MIX, toy("more", CAUSAL, x), two)
    toy("sum", MIX, near, far)
    assert not toy.leaks((tokens, 1, one), (tokens, 2, two))


def test_two_rows_ahead_allow_one() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    target = toy("target", NEXT_2, tokens)
    ahead = toy("ahead", NEXT, toy("x", MIX, tokens, table))
    toy("good", MIX, ahead, target)
    assert not toy.leaks((tokens, 2, target))
    toy("bad", MIX, toy("further", NEXT, ahead), target)
    (leak,) = toy.leaks((tokens, 2, target))
    assert (leak.sees, leak.may_see) == ("t+2", "t+1")


def test_what_has_no_weights_may_look_ahead() -> None:
    def build(toy: Toy, tokens: Value, table: Weight) -> Value:
        return toy("logits", CAUSAL, toy("x", MIX, tokens, table))

    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    target = toy("target", NEXT, tokens)
    picked = toy("picked", MIX, build(toy, tokens, table), target)
    count = toy("count", LENGTH, type=ValueType(Int(), (), per_example=True))
    toy("mean", MIX, picked, count)
    toy("scaled", MIX, target, count)
    assert not toy.leaks((tokens, 1, target))


def test_a_flag_of_the_target_only_chooses_rows() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    target = toy("target", NEXT, tokens)
    known = toy("known", MIX, target, type=ValueType(Flag(), (SEQ,)))
    toy("kept", MIX, known, toy("other loss", FULL, toy("x", MIX, tokens, table)))
    assert not toy.leaks((tokens, 1, target))


def test_a_renamed_source_is_still_the_source() -> None:
    toy = Toy()
    tokens, table = toy.input("tokens"), toy.weight("table")
    copy = toy("copy", MIX, tokens, type=tokens.type)
    target = toy("target", NEXT, copy)
    toy("picked", MIX, toy("logits", FULL, toy("x", MIX, tokens, table)), target)
    (leak,) = toy.leaks((copy, 1, target))
    assert leak.source == "tokens"


def test_without_targets_nothing_is_demanded() -> None:
    toy = Toy()
    toy("x", FULL, toy.input("tokens"))
    assert not toy.leaks()


# -- paths


def test_a_path_through_segments_starts_where_the_bound_breaks() -> None:
    patch = make_axis("patch", Cut(SEQ))
    cut = frontier.segments(patch, frontier.row(SEQ))
    pool = op("pool", lambda x: frontier.pool(x, cut, "sum"), row_wise=False)
    own = op("own", lambda p: frontier.spread(p, cut, "own"), row_wise=False)
    toy = Toy()
    tokens = toy.input("tokens")
    pooled = toy("pooled", pool, tokens, type=ValueType(Real(), (patch, DIM)))
    out = toy("out", own, pooled)
    steps = leak_path(toy.program(), tokens, out, frontier.row(SEQ))
    assert [(step.value.name, str(step.frontier)) for step in steps] == [
        ("tokens", "t"), ("pooled", "C (patch)"), ("out", "end(patch)"),
    ]  # fmt: skip


# -- generating


def generates(toy: Toy, output: Value, sources: Iterable[Value]) -> NotGenerated | None:
    return check_generates(toy.program(), output, sources)


def test_generating_names_what_prevents_it() -> None:
    toy = Toy()
    tokens = toy.input("tokens")
    good = toy("good", CAUSAL, tokens)
    bad = toy("bad", MIX, toy("mixed", FULL, good))
    assert generates(toy, good, [tokens]) is None
    error = generates(toy, bad, [tokens])
    assert error is not None
    assert (error.output, error.culprit, error.sees) == ("bad", "mixed", "all")
    assert error.describe().title == "bad cannot be generated row by row: mixed sees all of tokens, not t"


def test_a_prompt_and_other_axes_may_be_seen_whole() -> None:
    ask, answer, image = make_axis("ask"), make_axis("answer"), make_axis("image")
    talk = make_axis("talk", Joined((ask, answer)))
    toy = Toy()
    first, second, picture = toy.input("first", ask), toy.input("second", answer), toy.input("picture", image)
    whole = op("concat", lambda a, b: frontier.join_selections(talk, (a, b)), row_wise=False)
    full = op("all", lambda x: frontier.reduce_over_axis(x, ask, keep=True), row_wise=False)
    seen = toy("seen", full, first, type=ValueType(Real(), (ask, DIM)))
    both = toy("both", whole, seen, second, type=ValueType(Real(), (talk, DIM)))
    out = toy("out", MIX, both, toy("image", MEAN, picture, type=ValueType(Real(), (DIM,), per_example=True)),
              type=ValueType(Real(), (talk, DIM)))  # fmt: skip
    assert generates(toy, out, [first, second, picture]) is None
    late = op("late", lambda x: frontier.following(x, 1, talk), row_wise=False)
    error = generates(toy, toy("late", late, out, type=out.type), [first, second, picture])
    assert error is not None
    assert error.source == "second"


# -- specs


def page_specs(error: type, which: str) -> str:
    found = re.search(rf"^{which}:\n((?:    .*\n|\n)+)", error.page() + "\n", re.MULTILINE)
    assert found is not None
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)


def codes(text: str) -> list[str]:
    return [error.code for error in check_all(Source("page", text), OPS).problems.errors]


def test_the_pages_specs_do_what_they_say() -> None:
    assert codes(page_specs(TargetLeak, "Wrong")) == ["E401"]
    assert codes(page_specs(TargetLeak, "Right")) == []
    for which, expected in (("Wrong", True), ("Right", False)):
        result = check_all(Source("page", page_specs(NotGenerated, which)), OPS)
        program = result.value().models["m"]
        error = check_generates(program, program.outputs[0][1], program.inputs)
        assert (error is not None) == expected


ATTENTION = """
size dim = 8
size vocab = 10
axis seq
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    x = x + attend(rms_norm(x) as q, x, x, over=dim, along=seq, mask=MASK)
    return linear(x, dim -> vocab) as head
objective o(tokens: id[seq] in vocab):
    loss text = cross_entropy(m(tokens), TARGET)
"""


@pytest.mark.parametrize(
    ("mask", "target", "expected"),
    [
        ("causal", "next(tokens)", []),
        ("causal and window(4)", "next(tokens)", []),
        ("window(4)", "next(tokens)", ["E401"]),
        ("window(4)", "shift(tokens, -1)", []),
        ("causal or key(position) == query(position) + 1", "next(tokens)", ["E401"]),
        ("causal or key(position) == query(position) + 1", "next(tokens, 2)", []),
        ("causal", "next(tokens, 2)", []),
    ],
)
def test_masks_in_a_spec(mask: str, target: str, expected: list[str]) -> None:
    assert codes(ATTENTION.replace("MASK", mask).replace("TARGET", target)) == expected


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.parent.glob("specs/*.weft")), ids=lambda p: p.stem)
def test_shipped_models_can_be_generated(path: Path) -> None:
    result = check_all(Source(path.name, path.read_text(encoding="utf-8")), OPS)
    for program in result.value().models.values():
        for _, output in program.outputs:
            assert check_generates(program, output, program.inputs) is None
