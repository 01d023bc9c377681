"""The two models of a comparison run, with what every layer takes and returns recorded."""
