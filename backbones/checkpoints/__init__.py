"""Encoder checkpoints of other people's code and of ours: opened safely, checked key by key, written out.

`opening` makes a file into tensors, `match` says what every one of them is by the declarations in `families/`,
`report` tells a person, `export` writes. `backbones.checkpoint` is the short way.
"""
