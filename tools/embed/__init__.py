"""Embeddings of a folder of images, or of any data source, by a trained model."""
