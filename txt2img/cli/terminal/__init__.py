"""Terminal output: progress, inline pictures, signals and streams."""
