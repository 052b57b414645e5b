"""Many runs of a program at once."""
