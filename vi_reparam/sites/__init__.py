"""One site of a guide: its draw, its estimator, what it reports."""
