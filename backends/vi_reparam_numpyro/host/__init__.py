"""NumPyro's statements, distributions and handlers."""
