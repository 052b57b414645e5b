"""Guide families as plain specifications."""

from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.mean_field import MeanField

__all__ = ["GuideFamily", "MeanField"]
