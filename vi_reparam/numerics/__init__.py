"""Special functions and the two stop-gradient identities."""
