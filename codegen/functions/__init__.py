"""Functions that lowered graphs call: torch only, nothing of Weft. Each is a leaf of the fx graph with a plain
signature."""
