"""UperNet and linear heads on a ViT, with the arithmetic and parameter names of BEiT's code and mmsegmentation."""
