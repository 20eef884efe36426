"""Passes over fx graphs; the list of them is codegen/pipeline.py."""
