"""Read encoder checkpoints of other projects and of mimbench safely, check every key, and write them.

`opening` reads the tensors of a file, `match` assigns each of them by the declarations in `families/`, `report` shows
the result to people, `export` writes. `backbones.checkpoint` is the short interface.
"""
