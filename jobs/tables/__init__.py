"""Numbers beside each other: runs, papers, what computing them costs; in text, as pages and as model cards."""
