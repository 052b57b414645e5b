"""What every backend's posterior shares: figures, tables, pictures, files."""
