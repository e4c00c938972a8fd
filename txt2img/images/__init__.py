"""Picture files: formats, metadata, output paths, resuming. No torch."""
