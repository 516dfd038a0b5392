"""Tables of the Perception Encoder's paper as studies."""
