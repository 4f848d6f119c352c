"""See ``NOTES.md``."""
