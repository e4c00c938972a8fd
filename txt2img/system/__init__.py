"""The machine, without torch: files, locks, settings, launchers, text for messages."""
