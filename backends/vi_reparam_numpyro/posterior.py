"""Pickles of earlier versions name this module."""

raise ImportError("this pickle is of an earlier version of vi-reparam: fit again, and keep the fit with its .save")
