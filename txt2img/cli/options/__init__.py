"""Options, a file for each section of --help."""
