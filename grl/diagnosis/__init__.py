"""Does this layer really reverse, in this model? Gradients are measured, and a verdict says what they show."""
