"""Segmentation recipes: every public function of a module here is a recipe."""
