"""The `mimbench` command: runs, studies, tables and reports. Imports no torch until a run starts."""
