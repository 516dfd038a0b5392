"""MaskAlign's tables as studies."""
