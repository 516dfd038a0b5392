"""MAE's tables as studies."""
