"""The fit: from a model with a guide to a posterior."""
