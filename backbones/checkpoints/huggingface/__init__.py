"""Checkpoints of Hugging Face's transformers: `config.json` beside the weights, read and written.

`folder` finds the weights in a folder and reads what lies beside them, `models` says what each model type is,
`names` brings its weights to ours, `family` joins the three for `match`, `export` writes a folder.
"""
