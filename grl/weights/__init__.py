"""The weights of a model: pairing with a model of the other framework, copying, and portable files."""
