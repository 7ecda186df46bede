"""Config files of the R1-Zero recipe, one for each stage."""
