"""Studies of guides over all latents: what users want to see before they choose one."""

from vi_reparam.study.backend import StudyBackend
from vi_reparam.study.families import FamilyRow, study_families
from vi_reparam.study.forms import FormRow, study_forms
from vi_reparam.study.table import Study

__all__ = ["FamilyRow", "FormRow", "Study", "StudyBackend", "study_families", "study_forms"]
