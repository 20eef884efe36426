"""Gradients of what rows read in runs, added up where they are computed.

    d_k = load(..) * w;  store(d_k, row)         ->      program r:  for the rows of run r:  total += d_k
    afterwards: sums of rows in runs                                 store(total, r)

A program takes the rows that read one row of the tables, so what a table is given is a sum that one program holds: it
is not stored row by row and read again. Rows that read nothing go with the run before them and add nothing.
"""

from __future__ import annotations

from dataclasses import replace

from . import functions as f
from .derivative import Derivative
from .making import make
from .row_program import Load, Result, RowProgram, Store, Val
from .tiles import MOST_LIVE, Tiles


def summed_in_runs(derivative: Derivative) -> Derivative:
    """The derivative with its gathered gradients summed; as it was, where a program cannot hold them, where rows are
    read by several indices, or where other sums over rows would have a part from every run."""
    gathered = [made for made in derivative.gathered if made.in_runs]
    program = derivative.program
    is_alone = len(gathered) == len(derivative.gathered) and len({made.index for made in gathered}) == 1
    if not gathered or not is_alone or gathered[0].index is None:
        return derivative
    index = _index(program, gathered[0].index)
    if index is None or index.axes or any(store.sum_rows for store in program.stores):
        return derivative
    sums = {made.rows for made in gathered}
    results, place_of = list(program.results), {}
    for number in sorted(sums):
        # The rows of a result may be the gradient of another operand as well, and stay for it.
        stays = any(result == number for _, result in derivative.owners)
        place_of[number] = len(results) if stays else number
        results[place_of[number] : place_of[number] + 1] = [_of_runs(program.results[number])]
    stores = [store for store in program.stores if place_of.get(store.place) != store.place]
    stores += [_added(store, place_of[store.place], index) for store in program.stores if store.place in sums]
    summed = replace(program, results=tuple(results), stores=tuple(stores), runs=(gathered[0].index, gathered[0].place))
    tiles = Tiles(summed)
    if tiles.cut is not None or tiles.live > MOST_LIVE:
        return derivative
    found = tuple(replace(made, rows=place_of[made.rows], is_summed=True) for made in derivative.gathered)
    return replace(derivative, program=summed, gathered=found)


def _index(program: RowProgram, place: int) -> Val | None:
    """The number of each row's run, as the program reads it."""
    loads = [value for value in program.values if isinstance(value, Load) and value.index is None]
    return next((load for load in loads if load.source is not None and load.source.place == place), None)


def _of_runs(result: Result) -> Result:
    return replace(result, by_row=False, by_run=True)


def _added(store: Store, place: int, index: Val) -> Store:
    there = make(f.AT_LEAST, index, 0, origin=store.value.origin)
    value = make(f.WHERE, there, store.value, 0.0, origin=store.value.origin)
    return replace(store, place=place, value=value, sum_rows=True)
