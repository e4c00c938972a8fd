"""Worker of --keep-alive: client and protocol."""
