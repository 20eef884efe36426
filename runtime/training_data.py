"""A run's data: which of the two ways its objective asks for, and what reads and packs it.

An objective of ids along one axis is given windows of tokens (data.py, loader.py); any other, examples with parts
(part_corpus.py, part_loader.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..dsl.program import Program
from ..dsl.value_type import Id, Real
from .columns import Column, read_column
from .data import Corpus, DataOptions, load_corpus
from .errors import RuntimeFault
from .examples import Marks, Orders
from .feeds import Feeds, bind, reads_plain_text
from .loader import BatchPlan, Pack, SegmentsOf, TokenLoader
from .model import Model
from .part_corpus import CAP, PartCorpus, load_part_corpus
from .part_loader import PartLoader, pack_parts
from .run_config import RunConfig
from .tokens import Tokens, find_marks, load_tokens
from .train_step import LOSS_SETTINGS


def load_data(config: RunConfig, model: Model, objective: Program) -> Corpus:
    """Everything that the config names, as the objective takes it."""
    options = DataOptions(
        sources=config.data,
        format=config.format,
        field=config.field,
        suffixes=config.suffixes,
        max_length=config.max_length,
        eval_fraction=config.eval_fraction,
        begin_mark=config.begin_mark,
    )
    if reads_plain_text(objective):
        kind = objective.inputs[0].type.kind
        assert isinstance(kind, Id)
        tokens = load_tokens(config.tokenizer, kind.count, config.end_token)
        return load_corpus(options, tokens, kind.count, _columns(config, objective))
    if config.columns:
        raise RuntimeFault(f"columns go with text; {objective.name} takes examples with parts")
    feeds = bind(objective, config.feeds)
    vocabulary = load_tokens(config.tokenizer, feeds.vocab, config.end_token) if feeds.texts else None
    marks = _marks(config, feeds, vocabulary)
    return load_part_corpus(options, feeds, vocabulary, marks, _orders(config, model, feeds))


def loader_of(corpus: Corpus, plan: BatchPlan, segments_of: Callable[[], SegmentsOf]) -> TokenLoader:
    """What makes the steps of a run. `segments_of` is asked where a plan counts patches."""
    if isinstance(corpus, PartCorpus):
        return PartLoader(corpus, plan)
    return TokenLoader(corpus, plan, segments_of=None if plan.patches is None else segments_of())


def pack_of(corpus: Corpus) -> Pack | None:
    """What packs held-out examples, where they are no windows of tokens."""
    return pack_parts if isinstance(corpus, PartCorpus) else None


def _columns(config: RunConfig, objective: Program) -> dict[str, Column]:
    """The files that are read instead of computing optional inputs of the objective."""
    rows = objective.inputs[0].type.rows
    for name in config.columns:
        value = objective.optional.get(name)
        if value is None:
            known = ", ".join(objective.optional) or "none"
            raise RuntimeFault(f"{objective.name} has no optional input {name}; it has {known}")
        if name in LOSS_SETTINGS:
            raise RuntimeFault(f"a column cannot feed an input that is called {name}: rename it in the spec")
        if value.type.rows is not rows or value.type.static_axes or not isinstance(value.type.kind, Real):
            raise RuntimeFault(f"{name} is {value.type}: a column holds one real for each token")
    return {name: read_column(Path(path)) for name, path in config.columns.items()}


def _marks(config: RunConfig, feeds: Feeds, tokens: Tokens | None) -> Marks:
    kinds = [feed.kind for feed in feeds.items]
    unknown = set(config.part_marks) - set(kinds)
    if unknown:
        raise RuntimeFault(f"part_marks: {feeds.objective} has no parts of the kind {min(unknown)} that are no text")
    if tokens is None or feeds.plain is None:
        return Marks("")
    around = {kind: find_marks(tokens, kind, number, config.part_marks.get(kind)) for number, kind in enumerate(kinds)}
    begin = () if tokens.begin is None else (tokens.begin,)
    end = () if tokens.end is None else (tokens.end,)
    return Marks(feeds.plain, begin, end, around)


def _orders(config: RunConfig, model: Model, feeds: Feeds) -> Orders:
    steps = config.noise_steps or model.checked.sizes.get("steps")
    if steps is None:
        if any(feed.input == CAP for feed in feeds.values):
            raise RuntimeFault(f"{feeds.objective} takes `{CAP}`, but {model.checked.source.name} has no size `steps`: "
                               "give noise_steps")  # fmt: skip
        steps = 1
    return Orders(config.seed, config.picture_first, config.drop_caption, steps, config.early_noise)
