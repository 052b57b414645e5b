"""Pyro's statements, distributions and handlers."""
