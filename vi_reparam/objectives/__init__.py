"""What every backend's objective shares."""
