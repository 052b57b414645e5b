"""Studies of estimators and guides: what users want to see before they choose one."""

from vi_reparam.study.table import Study

__all__ = ["Study"]
