"""Gradient estimators: what a user writes at a site."""

from vi_reparam.estimators.auto import Auto
from vi_reparam.estimators.base import Estimator
from vi_reparam.estimators.measure_valued import MeasureValued
from vi_reparam.estimators.pathwise import Implicit, Pathwise
from vi_reparam.estimators.rejection import Rejection
from vi_reparam.estimators.score_function import ScoreFunction

__all__ = ["Auto", "Estimator", "Implicit", "MeasureValued", "Pathwise", "Rejection", "ScoreFunction"]
