"""Every mistake a spec can contain, one class each, by subject.

E1xx syntax, E2xx axes, types and masks, E3xx names and sizes, E4xx causality, E5xx weights, objectives and limits,
E9xx not built yet.
"""
