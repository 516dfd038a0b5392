"""AMT and FAMT's tables as studies."""
