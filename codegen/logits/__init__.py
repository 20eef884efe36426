"""A linear whose outputs are only reduced along their row: logsumexp, entropy, maximum, entries at given ids.

kernels.py   what is asked of the rows -> kernels as data
text.py      kernels and the call that launches them, as text
op.py        the call as the compiler's graphs hold it
"""
