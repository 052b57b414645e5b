"""Samplers by themselves, and their kernels."""
