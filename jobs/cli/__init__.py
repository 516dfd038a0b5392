"""The `mimbench` command: how its commands are called, and what they do."""
