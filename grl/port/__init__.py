"""Where does a port diverge, and why? A PyTorch model and its port to nnx, run side by side and compared.

Importing it imports no framework.
"""
