"""`grl check`: every form of a gradient reversal layer, ours or yours, under every transformation of its framework."""
