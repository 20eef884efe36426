"""Learning rates over a run, and the optimiser's groups."""

import math

import pytest
import torch

from weft.dsl.patterns import matches, select
from weft.dsl.program import Optimiser, OptimiserLine
from weft.runtime.errors import RuntimeFault
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups
from weft.runtime.run_config import make_config
from weft.runtime.schedule import Schedule
from weft.runtime.train import make_schedule

PATHS = ("embed.weight", "layer.0.q.linear.weight", "layer.0.norm.gain", "layer.1.q.linear.weight", "head.weight")


def test_warm_up_is_linear_and_reaches_the_peak():
    schedule = Schedule("cosine", warmup=100, total=1000, final=0.1)
    assert schedule.factor(1) == pytest.approx(0.01)
    assert schedule.factor(50) == pytest.approx(0.5)
    assert schedule.factor(100) == 1.0


def test_cosine_is_the_published_formula():
    schedule = Schedule("cosine", warmup=100, total=1100, final=0.1)
    for done in (100, 350, 600, 1099, 1100):
        wanted = 0.1 + 0.9 * (1 + math.cos(math.pi * (done - 100) / 1000)) / 2
        assert schedule.factor(done) == pytest.approx(wanted, rel=1e-12)
    assert schedule.factor(5000) == pytest.approx(0.1)


def test_olmo2_stops_at_the_published_rate():
    """olmo2.md 3.4: the 7B run stops at 3.895T of 5T tokens, where the formula gives 6.135e-5 of a peak of 3e-4."""
    schedule = Schedule("cosine", warmup=8_388_608_000, total=5e12, final=0.1)
    assert 3e-4 * schedule.factor(3.895e12) == pytest.approx(6.135e-5, rel=1e-3)


def test_linear_and_constant():
    linear = Schedule("linear", warmup=10, total=110, final=0.0)
    assert [linear.factor(done) for done in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    constant = Schedule("constant", warmup=4, total=10)
    assert [constant.factor(done) for done in (2, 4, 10, 99)] == [0.5, 1.0, 1.0, 1.0]


def test_no_warm_up_and_all_warm_up():
    assert Schedule("linear", 0, 10, 0.5).factor(0) == 1.0
    assert Schedule("cosine", 10, 10, 0.5).factor(10) == 0.5


def test_config_chooses_the_unit():
    base = {"spec": "a.weft", "data": ["x"]}
    assert make_schedule(make_config(base, {"steps": 1000})) == Schedule("cosine", 20, 1000, 0.1)
    tokens = make_config(base, {"schedule_tokens": 10**6, "warmup_tokens": 10**4, "schedule": "linear"})
    assert make_schedule(tokens) == Schedule("linear", 10**4, 10**6, 0.1)


@pytest.mark.parametrize(
    ("pattern", "path", "wanted"),
    [
        ("embed", "embed.weight", True),
        ("embed", "embedding.weight", False),
        ("embed.weight", "embed", False),
        ("layer.*.q", "layer.3.q.linear.weight", True),
        ("layer.*.q", "layer.q.weight", False),
        ("**.linear.weight", "layer.3.q.linear.weight", True),
        ("**.linear.weight", "linear.weight", True),
        ("**.text", "layer.texts.weight", False),
        ("a.**.b", "a.b", True),
        ("a.**.b", "a.c.d.b.e", True),
        ("a.**", "a", True),
        ("**", "anything.at.all", True),
        ("*", "one.two", True),
        ("**.a.**.a.**.a", "a.x.a.y.b", False),
    ],
)
def test_patterns(pattern, path, wanted):
    assert matches(pattern, path) is wanted


def test_many_stars_stay_fast():
    assert not matches(".".join(["**", "a"] * 40 + ["b"]), ".".join(["a"] * 400))


def test_select_keeps_the_order():
    assert select("layer.*.q", PATHS) == (PATHS[1], PATHS[3])


def spec(*lines, **settings):
    return Optimiser("adamw", tuple(settings.items()), tuple(OptimiserLine(p, tuple(s.items())) for p, s in lines))


def test_first_matching_line_wins():
    groups = make_groups(spec(("embed", {"decay": 0.0}), ("**.weight", {"decay": 0.5}), lr=1e-3, decay=0.1), PATHS)
    by_path = {path: group.settings.decay for group in groups for path in group.paths}
    assert by_path == {PATHS[0]: 0.0, PATHS[1]: 0.5, PATHS[2]: 0.1, PATHS[3]: 0.5, PATHS[4]: 0.5}


def test_a_runs_rate_keeps_proportions():
    groups = make_groups(spec(("head", {"lr": 1e-4}), lr=1e-3), PATHS, lr=2e-3)
    assert [group.settings.lr for group in groups] == pytest.approx([2e-4, 2e-3])


def test_left_out_and_trains():
    groups = make_groups(None, PATHS, left_out=["head.weight"], trains=("layer", "head"))
    assert [path for group in groups for path in group.paths] == list(PATHS[1:4])


@pytest.mark.parametrize(
    ("optimiser", "message"),
    [
        (spec(("embd", {"decay": 0.0})), "optimise: no weight matches the pattern embd (did you mean embed?)"),
        (spec(decy=0.1), "optimise: no setting decy (did you mean decay?)"),
        (spec(betas=0.9), "optimise: betas are two numbers from 0 to 1, not 0.9"),
        (spec(lr=-1.0), "optimise: lr is one number, not below 0; got -1.0"),
        (Optimiser("lion", ()), "optimise by lion: this version trains by adamw only"),
    ],
)
def test_mistakes_are_one_line(optimiser, message):
    with pytest.raises(RuntimeFault) as fault:
        make_groups(optimiser, PATHS)
    assert str(fault.value) == message


def test_everything_frozen():
    with pytest.raises(RuntimeFault, match="nothing to train"):
        WeightOptimiser(make_groups(None, PATHS, left_out=PATHS), {})


def by_hand(weight, gradients, lr, betas, eps, decay):
    """AdamW as its paper states it, in float64."""
    first = second = torch.zeros_like(weight)
    for number, gradient in enumerate(gradients, start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        hat = (second / (1 - betas[1] ** number)).sqrt()
        weight = weight * (1 - lr * decay) - lr * first / (1 - betas[0] ** number) / (hat + eps)
    return weight


def test_adamw_and_clipping_by_hand():
    torch.manual_seed(0)
    weights = {path: torch.nn.Parameter(torch.randn(3, 5, dtype=torch.float64)) for path in PATHS[:3]}
    starts = {path: weight.detach().clone() for path, weight in weights.items()}
    lines = (("embed", {"decay": 0.0}), ("**.gain", {"clip": 0.25}))
    groups = make_groups(spec(*lines, lr=1e-2, betas=(0.8, 0.9), decay=0.1, clip=1.0, eps=1e-8), tuple(weights))
    optimiser = WeightOptimiser(groups, weights)
    history = {path: [] for path in weights}
    for _ in range(4):
        optimiser.zero_grad()
        gradients = {path: torch.randn(3, 5, dtype=torch.float64) for path in weights}
        together = torch.cat([gradients[path] for path in PATHS[:2]]).norm()
        own = gradients[PATHS[2]].norm()
        for path, weight in weights.items():
            weight.grad = gradients[path].clone()
            norm, limit = (own, 0.25) if path == PATHS[2] else (together, 1.0)
            history[path].append(gradients[path] * min(1.0, limit / (norm + 1e-6)))
        optimiser.step(Moment(), optimiser.gradient_norms())
    for path, decay in zip(PATHS, (0.0, 0.1, 0.1), strict=False):
        wanted = by_hand(starts[path], history[path], 1e-2, (0.8, 0.9), 1e-8, decay)
        torch.testing.assert_close(weights[path].detach(), wanted, rtol=1e-9, atol=1e-12)


def test_state_goes_on_bit_by_bit():
    def run(split):
        torch.manual_seed(1)
        weights = {path: torch.nn.Parameter(torch.randn(7)) for path in PATHS}
        optimiser = WeightOptimiser(make_groups(None, PATHS), weights)
        for number in range(6):
            if number == split:
                state = optimiser.state()
                copies = {path: torch.nn.Parameter(weight.detach().clone()) for path, weight in weights.items()}
                weights, optimiser = copies, WeightOptimiser(make_groups(None, PATHS), copies)
                optimiser.load_state(state)
            optimiser.zero_grad()
            for weight in list(weights.values())[:4]:  # the last gets no gradient, and moves by decay all the same
                weight.grad = torch.sin(weight.detach() * (number + 1))
            optimiser.step(Moment(0.5 + number / 10), optimiser.gradient_norms())
        return torch.stack([weight.detach() for weight in weights.values()])

    whole = run(None)
    assert all(torch.equal(run(split), whole) for split in (0, 1, 4))


def test_state_of_other_weights_is_refused():
    def make(names, size=3):
        weights = {name: torch.nn.Parameter(torch.ones(size)) for name in names}
        optimiser = WeightOptimiser(make_groups(None, names), weights)
        optimiser.step(Moment(), optimiser.gradient_norms())
        return optimiser

    with pytest.raises(RuntimeFault, match="b is on one side only"):
        make(["a", "b"]).load_state(make(["a"]).state())
    with pytest.raises(RuntimeFault, match="another shape for a"):
        make(["a"]).load_state(make(["a"], 4).state())


def test_zero_gradients_keep_decaying():
    weights = {"a": torch.nn.Parameter(torch.ones(2))}
    optimiser = WeightOptimiser(make_groups(spec(lr=0.1, decay=0.5), ["a"]), weights)
    optimiser.step(Moment(), optimiser.gradient_norms())
    assert weights["a"].tolist() == pytest.approx([0.95, 0.95])
