"""Tables of runs, papers and computation, as text, HTML pages and model cards."""
