"""CrossMAE's tables as studies."""
