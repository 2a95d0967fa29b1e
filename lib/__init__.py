"""Recurrent cells, their training and their comparison: the library behind the notebooks."""
