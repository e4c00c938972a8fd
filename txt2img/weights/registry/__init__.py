"""Model names: local files, aliases, the Hugging Face cache, hashes."""
