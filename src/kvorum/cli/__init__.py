"""The `kvorum` command."""
