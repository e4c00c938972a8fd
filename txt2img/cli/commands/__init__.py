"""Commands, one per file: generate, info, models, replay, verify, decode, train, worker."""
