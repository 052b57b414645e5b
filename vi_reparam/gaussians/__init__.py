"""Gaussians over a vector of latents: bases, units, tails and path gradients."""
