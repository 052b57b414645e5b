"""The command ``vi-reparam``."""
