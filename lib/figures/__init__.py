"""How results are drawn and written."""
