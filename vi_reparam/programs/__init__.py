"""Guide families as programs over a `Host`."""
