"""Eager CPU building blocks: plain torch functions that generated models call on packed rows."""
