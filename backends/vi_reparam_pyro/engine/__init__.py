"""Compiles and steps."""
