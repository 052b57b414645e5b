"""Studies of guides over all latents: what users want to see before they choose one."""

from vi_reparam.study.bench import Bench
from vi_reparam.study.families import FamilyRow, study_families
from vi_reparam.study.forms import FormRow, study_forms
from vi_reparam.study.table import Study

__all__ = ["Bench", "FamilyRow", "FormRow", "Study", "study_families", "study_forms"]
