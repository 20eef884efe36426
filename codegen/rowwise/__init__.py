"""The rowwise family: a connected group of maps, reductions over static axes and gathers becomes one kernel.

build.py        part of an fx graph -> row program: reshapes and permutations become names of axes
row_program.py  what one row computes, as data
functions.py    the pointwise functions: how Triton writes them, their derivatives
derivative.py   row program -> row program of its gradients
saved.py        which values of the forward the backward reads, and which it computes again
evaluate.py     runs a row program in torch: the oracle of the kernels
plan.py         row program -> kernel plan: tiles, loops, addresses, in the order of the text
"""
