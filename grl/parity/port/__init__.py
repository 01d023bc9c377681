"""Carry a model across: the parts of two models that correspond, and their weights, in memory and through a file.

Importing it imports no framework.
"""
