"""Layouts of labelled images on disk, recognised by their files; recognise.py lists them."""
