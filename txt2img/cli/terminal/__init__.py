"""The terminal: results, progress, inline pictures, signals and standard streams."""
