"""Commands, one per file: generate, info, models, replay, verify, decode, upscale, train, worker, again, env."""
