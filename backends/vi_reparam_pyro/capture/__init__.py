"""A step as a graph of tensor operations."""
