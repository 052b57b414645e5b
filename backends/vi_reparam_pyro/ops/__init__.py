"""Array functions, noise and loops."""
