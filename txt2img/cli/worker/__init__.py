"""The warm worker: client and protocol."""
