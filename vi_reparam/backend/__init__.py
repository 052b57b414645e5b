"""What the core asks of a framework."""
