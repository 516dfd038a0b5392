"""Data sets of labelled images as people have them on disk, told by looking; recognise.py has the list."""
