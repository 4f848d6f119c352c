"""What is sent: made from a model's metadata, or read from files, recordings and data sets."""
