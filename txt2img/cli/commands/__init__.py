"""Commands, a file each: generate, info, models, replay, verify, decode, train, worker."""
