"""A model's weights: read, paired with those of the other framework, carried across, and kept in a file."""
