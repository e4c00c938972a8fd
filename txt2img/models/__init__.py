"""The networks: no files, no terminal."""
